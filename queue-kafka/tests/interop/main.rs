//! Both ways with kafka-python and Java, clients in other languages.
//!
//! `scripts/interop` makes the Python that runs the programs beside this file; those in Java come with the broker of
//! `scripts/brokers`.

#[path = "../common/mod.rs"]
mod common;
#[path = "../../../tests/support/event.rs"]
mod event;

mod copies;
mod events;
mod from_python;
#[cfg(feature = "msk-iam")]
mod iam;
mod java;
mod members;
mod partitions;
mod positions;
mod python;
mod to_python;

use queue_core::Client;
use queue_kafka::DRIVER;

use crate::common::{block_on, run, url};

fn main() {
    macro_rules! tests {
        ($($file:ident::$name:ident),* $(,)?) => { vec![$((stringify!($name), (|| block_on($file::$name())) as fn())),*] };
    }
    #[cfg(feature = "msk-iam")]
    let mut all = tests![iam::a_token_for_msk_is_what_amazon_s_own_library_signs];
    #[cfg(not(feature = "msk-iam"))]
    let mut all = Vec::new();
    all.extend(tests![
        from_python::keys_values_and_timestamps_arrive_as_kafka_python_sent_them,
        from_python::headers_arrive_in_order_with_repeats_and_nulls,
        from_python::no_note_is_taken_for_one_that_is_none,
        from_python::the_broker_s_timestamp_is_no_timestamp_of_the_message,
        from_python::a_header_whose_name_is_no_utf8_makes_a_dead_letter_of_the_body,
        from_python::messages_of_a_transaction_that_was_given_up_do_not_arrive,
        to_python::keys_values_and_timestamps_reach_kafka_python_as_they_are,
        to_python::headers_reach_kafka_python_in_order_with_repeats_and_nulls,
        to_python::what_kafka_cannot_say_is_one_header_more_for_kafka_python,
        to_python::a_topic_with_the_broker_s_time_shows_it_to_kafka_python,
        to_python::what_kafka_python_sent_on_is_the_same_here,
        to_python::what_was_sent_on_from_here_is_the_same_for_kafka_python,
        partitions::a_key_goes_to_the_partition_that_kafka_python_chooses,
        partitions::messages_without_a_key_spread,
        positions::kafka_python_goes_on_where_a_receiver_was,
        positions::a_receiver_goes_on_where_kafka_python_was,
        positions::kafka_python_reads_over_the_note_beside_a_position,
        members::kafka_python_shares_a_group_by_cooperative_sticky,
        members::kafka_python_with_its_defaults_shares_a_group_that_is_set_to_them,
        members::a_group_without_a_strategy_in_common_ends_the_receiver_with_a_conflict,
        copies::a_dead_letter_is_a_plain_message_for_kafka_python,
        copies::a_dead_letter_that_kafka_python_sent_back_is_the_message_again,
        copies::a_retry_is_an_attempt_beside_the_position_to_kafka_python,
        java::a_key_goes_to_the_partition_that_java_chooses,
        java::records_are_the_same_for_java_and_here,
        java::java_goes_on_where_a_receiver_was_and_the_other_way_round,
        java::java_with_its_defaults_shares_a_group,
        events::events_reach_the_official_sdk_in_each_mode,
        events::events_of_the_official_sdk_arrive_in_each_mode,
    ]);
    run(&all);
}

async fn client() -> Client {
    Client::connect_with(&url().unwrap(), &[DRIVER]).await.unwrap()
}
