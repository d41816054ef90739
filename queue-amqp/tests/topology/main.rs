//! Queues, exchanges and bindings of every kind, on a real broker, mostly through the handles.

#[path = "../common/mod.rs"]
mod common;

mod existing;
#[cfg(feature = "management")]
mod management;
mod options;
mod order;
mod priorities;
mod routing;
mod streams;

use std::time::Duration;

use futures::FutureExt;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use queue_amqp::{AmqpBroker, DRIVER};
use queue_core::{Client, Delivery, Receiver};
use tokio::time::timeout;

use crate::common::{Case, run_on_each, soon};

fn main() {
    macro_rules! cases {
        ($($file:ident::$name:ident),* $(,)?) => { vec![$(Case(stringify!($name), |url| $file::$name(url).boxed_local())),*] };
    }
    #[allow(unused_mut, reason = "one case needs a feature")]
    let mut cases = cases![
        existing::what_was_not_asked_for_is_taken_as_it_is,
        existing::what_a_queue_counts_is_known_to_who_did_not_make_it,
        existing::what_was_asked_for_and_differs_is_shown,
        existing::a_queue_of_another_program_just_works,
        existing::a_queue_deleted_behind_its_receiver_costs_nobody_the_connection,
        existing::a_queue_of_another_connection_is_refused,
        existing::an_exchange_is_compared_like_a_queue,
        existing::verifying_compares_and_makes_nothing,
        existing::a_queue_of_dead_letters_drops_none,
        existing::a_queue_of_dead_letters_with_a_limit_is_taken_as_it_is,
        options::options_come_by_program_handle_file_and_url,
        options::what_is_wrong_is_named,
        options::keys_of_other_brokers_are_left_alone_in_a_file,
        options::the_version_of_the_server_is_known,
        order::a_single_active_consumer_keeps_the_order_of_keys,
        order::a_retry_without_a_delay_is_paused_by_the_server_where_it_was_told_to,
        priorities::a_message_of_a_higher_priority_goes_first,
        priorities::a_copy_keeps_a_priority_that_its_queue_does_not_look_at,
        routing::keys_choose_what_a_group_gets,
        routing::headers_choose_what_a_group_gets,
        routing::a_subscriber_without_a_group_has_keys_too,
        routing::a_missing_exchange_type_costs_nobody_the_connection,
        routing::a_single_active_consumer_is_alone,
        routing::dead_letters_of_the_broker_arrive_at_least_once,
        streams::a_stream_is_read_from_any_position,
        streams::a_stream_wants_a_start_and_nothing_else_takes_one,
        streams::a_subscription_goes_on_where_it_was_when_the_connection_broke,
        streams::a_pause_loses_and_doubles_nothing_of_a_stream,
        streams::retries_and_dead_letters_of_a_stream_stay_with_the_receiver,
        streams::a_stream_cannot_be_purged_and_nobody_notices,
        streams::a_queue_that_was_remade_as_a_stream_is_one,
        streams::a_receiver_whose_queue_became_a_stream_says_so,
        streams::a_topic_takes_nothing_from_a_queue_of_its_name,
        order::what_is_only_assumed_is_not_promised,
        options::defaults_of_the_url_are_for_the_queue_of_a_subscriber_too,
    ];
    #[cfg(feature = "management")]
    cases.extend(cases![management::the_http_api_names_every_difference]);
    run_on_each(cases);
}

async fn client(url: &str) -> Client {
    Client::connect_with(url, &[DRIVER]).await.unwrap()
}

fn native(client: &Client) -> &AmqpBroker {
    client.broker().native().downcast_ref().expect("as documented")
}

/// Declares a queue as another program would.
async fn declare(client: &Client, name: &str, options: QueueDeclareOptions, arguments: &[(&str, AMQPValue)]) {
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let channel = native(client).open_channel().await.unwrap();
    channel.queue_declare(name.into(), options, table).await.unwrap();
    channel.close(200, "OK".into()).await.unwrap();
}

async fn next(receiver: &mut Receiver) -> Delivery {
    soon(receiver.receive()).await.unwrap()
}

/// Receives and acknowledges so many messages; their texts, as they came.
async fn texts(receiver: &mut Receiver, count: usize) -> Vec<String> {
    let mut texts = Vec::new();
    for _ in 0..count {
        let delivery = next(receiver).await;
        texts.push(delivery.text().unwrap().to_owned());
        delivery.ack();
    }
    texts
}

/// Whether nothing comes for a moment. A message that comes later is not seen: use it beside a certain check.
async fn is_silent(receiver: &mut Receiver) -> bool {
    timeout(Duration::from_millis(300), receiver.receive()).await.is_err()
}
