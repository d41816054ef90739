//! Promises of the contract, on a real broker, without the handles.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/proxy.rs"]
mod proxy;

mod addresses;
mod delays;
mod receiving;
mod redrive;
mod sending;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use queue_amqp::AmqpBroker;
use queue_core::{Broker, Consumer, Message};
use tokio::time::timeout;

use crate::common::{Case, receive, run};

fn main() {
    macro_rules! cases {
        ($($file:ident::$name:ident),* $(,)?) => { vec![$(Case(stringify!($name), |url| $file::$name(url).boxed_local())),*] };
    }
    run(
        common::URL,
        cases![
            receiving::acknowledged_messages_never_come_back,
            sending::unroutable_messages_in_a_large_batch_are_named_exactly,
            sending::senders_that_share_a_channel_get_their_own_verdicts,
            sending::a_missing_exchange_fails_its_message_alone,
            sending::a_channel_that_closes_fails_no_message_of_a_sender_that_retries,
            sending::a_broker_that_does_not_confirm_is_not_sent_what_nobody_waits_for,
            sending::a_missing_exchange_disturbs_no_message_to_a_queue,
            sending::a_message_that_the_queue_refuses_is_rejected_and_not_tried_again,
            sending::a_full_queue_disturbs_no_other,
            receiving::unanswered_messages_come_back_counted,
            receiving::answers_out_of_order_leave_exactly_the_others,
            sending::every_header_comes_back_as_it_was,
            sending::another_client_reads_and_writes_plain_messages,
            sending::an_oversized_header_fails_its_message_alone,
            sending::an_expired_message_is_not_delivered,
            addresses::groups_each_get_everything_and_subscribers_what_is_new,
            addresses::a_deleted_queue_ends_its_consumer,
            addresses::thousands_of_refused_questions_leave_no_trace,
            receiving::a_pause_gives_back_what_is_buffered,
            receiving::stop_gives_back_and_still_takes_answers,
            addresses::what_exists_is_taken_as_it_is_unless_it_differs_from_what_was_asked,
            addresses::wrong_logins_and_addresses_are_told_apart,
            sending::closing_waits_for_confirmations_and_is_idempotent,
            receiving::a_small_prefetch_is_kept_and_not_slow,
            receiving::a_flush_speaks_for_no_answer_given_after_it,
            receiving::a_close_tells_nothing_of_an_earlier_connection,
            redrive::a_dead_letter_is_counted_once_when_the_connection_breaks,
            delays::a_delay_is_kept_to_the_step_of_the_ladder,
            delays::names_with_signs_of_routing_keys_reach_their_own_queue,
            delays::what_cannot_be_delayed_is_refused,
            delays::a_queue_that_is_gone_holds_up_no_delayed_message,
            delays::a_retry_is_counted_by_the_library_and_carries_nothing_of_the_brokers,
            delays::what_stands_in_the_way_of_a_delay_is_told,
            delays::a_queue_made_anew_by_another_client_is_found_again,
            delays::a_missing_part_of_the_ladder_is_made_anew,
            delays::a_retry_on_a_queue_whose_name_leaves_no_room_is_held_back_by_its_receiver,
        ],
    );
}

fn numbered(count: usize) -> Vec<Message> {
    (0..count).map(|n| Message::new(n.to_string())).collect()
}

fn native(broker: &Arc<dyn Broker>) -> &AmqpBroker {
    broker.native().downcast_ref().expect("as documented")
}

/// Whether nothing comes for a moment. A message that comes later is not seen: use it beside a certain check.
async fn is_silent(consumer: &Arc<dyn Consumer>) -> bool {
    timeout(Duration::from_millis(300), receive(consumer)).await.is_err()
}
