//! Both ways with pika, a client in another language, and with the SDK of CloudEvents.
//!
//! `scripts/interop` makes the Python that runs the programs beside this file.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../../tests/support/event.rs"]
mod event;

mod events;
mod from_pika;
mod python;
mod queues;
mod rpc;
mod to_pika;

use futures::FutureExt;
use queue_amqp::DRIVER;
use queue_core::Client;

use crate::common::{Case, run_on_each};

fn main() {
    macro_rules! cases {
        ($($file:ident::$name:ident),* $(,)?) => { vec![$(Case(stringify!($name), |url| $file::$name(url).boxed_local())),*] };
    }
    run_on_each(cases![
        from_pika::bodies_and_properties_arrive_as_pika_sent_them,
        from_pika::every_header_that_pika_sends_keeps_type_and_value,
        from_pika::odd_header_names_from_pika_arrive_and_no_note_is_taken_for_one,
        from_pika::headers_that_nest_too_deep_make_a_dead_letter_of_the_body,
        from_pika::names_and_properties_that_are_no_utf8_end_in_the_dead_letters_of_the_server,
        to_pika::bodies_and_properties_reach_pika_as_they_are,
        to_pika::every_header_reaches_pika_with_its_type,
        to_pika::what_amqp_cannot_say_is_one_header_more_for_pika,
        to_pika::what_pika_sent_is_the_same_for_pika_when_it_was_sent_on,
        to_pika::a_dead_letter_is_a_plain_message_for_pika,
        to_pika::what_describes_a_body_stays_on_retries_and_dead_letters,
        to_pika::retries_and_delayed_messages_come_to_pika_by_the_ladder,
        to_pika::topics_and_exchanges_of_pika_are_the_same,
        queues::queues_of_pikas_own_making_are_sent_to_and_received_from,
        queues::an_exclusive_queue_of_pika_takes_messages_and_refuses_receivers,
        rpc::a_worker_answers_pika_in_its_exclusive_queue,
        rpc::a_worker_answers_pika_directly,
        rpc::pika_answers_questions_from_here,
        events::events_reach_the_official_sdk_in_each_mode,
        events::events_of_the_official_sdk_arrive_in_each_mode,
        rpc::pika_answers_a_request_of_the_client,
    ]);
}

async fn client(url: &str) -> Client {
    Client::connect_with(url, &[DRIVER]).await.unwrap()
}
