//! Both ways with boto3, Amazon's client for Python, by the programs beside this file.

#[path = "../support/mod.rs"]
mod support;

mod from_boto3;
mod python;
mod to_boto3;

use from_boto3::*;
use to_boto3::*;

fn main() {
    support::main(cases![
        bodies_arrive_as_boto3_sent_them,
        attributes_of_each_type_arrive_with_their_types,
        a_body_that_is_marked_as_base64_and_is_none_makes_a_dead_letter_of_itself,
        groups_and_deduplication_ids_arrive_as_keys_and_ids,
        a_message_that_boto3_delays_arrives,
        bodies_reach_boto3_as_text_or_marked,
        headers_reach_boto3_with_their_types,
        more_than_ten_headers_reach_boto3_by_the_note,
        properties_reach_boto3_by_the_note,
        keys_and_ids_reach_boto3_as_groups_and_deduplication_ids,
        a_delay_keeps_a_message_from_boto3,
        a_dead_letter_is_a_plain_message_for_boto3,
    ]);
}
