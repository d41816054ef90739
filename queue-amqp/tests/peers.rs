//! What goes wrong elsewhere: a test for each way to lose, double or bend a message that was found in other clients.
//!
//! | what goes wrong | the test that would see it |
//! | --- | --- |
//! | confirmations are not asked for, not awaited, or a refusal counts as one | `what_a_queue_refuses_is_named_and_nothing_comes_twice` |
//! | a message without a queue counts as sent | contract, `unroutable_messages_in_a_large_batch_are_named_exactly` |
//! | a confirmation that never comes is awaited for ever | `a_confirmation_that_never_comes_is_an_error_at_the_deadline` |
//! | a confirmation that comes late is an error | `a_confirmation_may_take_as_long_as_the_deadline_says` |
//! | each message waits for the confirmation of the one before | `confirmations_are_awaited_side_by_side` |
//! | each answer waits for the network | `answers_are_not_awaited_one_by_one` |
//! | one failed message breaks the connection of all | `a_message_without_a_queue_disturbs_nobody_else` |
//! | a failed batch is sent again as a whole | `what_a_queue_refuses_is_named_and_nothing_comes_twice` |
//! | what is sent twice cannot be told from two messages | `a_message_that_was_sent_again_is_the_same_for_its_receiver` |
//! | a lost connection is the end | faults, `connections_closed_by_the_server_come_back` |
//! | an answer after a reconnect acknowledges another message | faults, `tokens_of_a_lost_connection_touch_nothing` |
//! | queues of others are declared again with other arguments | interop, `queues_of_pikas_own_making_are_sent_to_and_received_from` |
//! | headers that are no text vanish, or change their type | interop, `every_header_that_pika_sends_keeps_type_and_value` |
//! | header names lose their case, repeated ones all but one | conformance, `odd_header_names_and_values_arrive`, `repeated_headers_keep_their_order` |
//! | what the server tells of a message is not to be seen | `a_message_that_died_elsewhere_tells_of_it` |
//! | deliveries are not counted | contract, `unanswered_messages_come_back_counted` |
//! | a failed message comes back at once, again and again | conformance, `a_retry_comes_again_counted_and_after_the_backoff` |
//! | a retry holds up the messages behind it | conformance, `a_retry_waits_for_its_delay_while_others_go_on` |
//! | a message that waits for its retry is lost with the process | `a_message_that_waits_for_its_retry_outlives_the_connection` |
//! | a failed message is dropped where there is no place for dead letters | `a_rejected_message_stays_while_there_is_no_place_for_dead_letters` |
//! | what cannot be decoded is never answered | interop, `headers_that_nest_too_deep_make_a_dead_letter_of_the_body` |
//! | a delay needs a plugin, and is no delay without it | conformance, `a_delayed_message_is_never_early_and_holds_up_nobody` |
//! | a delay replaces headers | `a_delayed_message_keeps_what_it_had` |
//! | a time to live is in the wrong unit | interop, `bodies_and_properties_reach_pika_as_they_are` |
//! | a receiver takes one message and drops what else was fetched | conformance, `a_dropped_receiver_gives_back_what_it_had_fetched` |
//! | messages are acknowledged before they are handled | conformance, `exactly_the_unanswered_come_again_after_a_restart` |
//! | messages are not persistent | interop, `bodies_and_properties_reach_pika_as_they_are` |
//! | the content type is always the same one | interop, `bodies_and_properties_reach_pika_as_they_are` |
//! | the client's types are in public signatures | the facade's `public_api` |

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{join_all, try_join_all};
use queue_amqp::DRIVER;
use queue_core::{
    Address, Client, Entry, ErrorKind, EventKind, HeaderValue, HealthState, Message, OnUnknown, Outcome, Source,
    Topology,
};
use tokio::time::Instant;

use crate::common::{Case, PATIENCE, run_on_each, soon, unique, until};
use crate::proxy::{Back, Proxy};

fn main() {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => { vec![$(Case(stringify!($name), |url| $name(url).boxed_local())),*] };
    }
    run_on_each(cases![
        what_a_queue_refuses_is_named_and_nothing_comes_twice,
        a_confirmation_that_never_comes_is_an_error_at_the_deadline,
        a_confirmation_may_take_as_long_as_the_deadline_says,
        confirmations_are_awaited_side_by_side,
        answers_are_not_awaited_one_by_one,
        a_message_without_a_queue_disturbs_nobody_else,
        a_message_that_was_sent_again_is_the_same_for_its_receiver,
        a_message_that_died_elsewhere_tells_of_it,
        a_message_that_waits_for_its_retry_outlives_the_connection,
        a_rejected_message_stays_while_there_is_no_place_for_dead_letters,
        a_delayed_message_keeps_what_it_had,
    ]);
}

async fn client(url: &str) -> Client {
    Client::connect_with(url, &[DRIVER]).await.unwrap()
}

/// Declares a queue with options of the server's own.
async fn declare(client: &Client, name: &str, native: &[(&str, &str)]) {
    let mut entry = Entry::new(Address::queue(name).unwrap());
    entry.native = native.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    client.declare(&Topology::from_iter([entry])).await.unwrap();
}

async fn remove(client: &Client, name: &str) {
    client.delete(name).await.unwrap();
    client.delete(Address::queue(name).unwrap().dead_letter()).await.unwrap();
}

async fn what_a_queue_refuses_is_named_and_nothing_comes_twice(url: String) {
    let client = client(&url).await;
    let name = unique("full");
    let limited = [("x-queue-type", "classic"), ("x-max-length", "5"), ("x-overflow", "reject-publish")];
    declare(&client, &name, &limited).await;
    let sender = client.sender(name.as_str()).deadline(Duration::from_secs(1)).await.unwrap();
    let mut taken = Vec::new();
    for n in 0..20 {
        match sender.send(n.to_string()).await {
            Ok(_) => taken.push(n.to_string()),
            Err(error) => assert_eq!((error.kind(), error.outcome()), (ErrorKind::Rejected, Outcome::Rejected)),
        }
    }
    assert_eq!(taken.len(), 5);
    let refused = sender.send_batch((0..10).map(|n| n.to_string())).await.unwrap_err().failures().len();
    assert_eq!(refused, 10);
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    let got = soon(receiver.receive_batch_within(100, Duration::from_secs(1))).await.unwrap();
    assert_eq!(got.iter().map(|m| m.message().text().unwrap().to_owned()).collect::<Vec<_>>(), taken);
    got.ack();
    receiver.close(PATIENCE).await;
    remove(&client, &name).await;
}

async fn a_confirmation_that_never_comes_is_an_error_at_the_deadline(url: String) {
    let proxy = Proxy::start(&url).await;
    let client = client(&proxy.url).await;
    let name = unique("never");
    let sender = client.sender(name.as_str()).deadline(Duration::from_secs(1)).await.unwrap();
    proxy.set(Back::Held);
    let start = Instant::now();
    let error = soon(sender.send("x")).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    let took = start.elapsed();
    assert!((Duration::from_secs(1)..Duration::from_secs(3)).contains(&took), "{took:?}");
    proxy.set(Back::After(Duration::ZERO));
    remove(&client, &name).await;
}

async fn a_confirmation_may_take_as_long_as_the_deadline_says(url: String) {
    let proxy = Proxy::start(&url).await;
    let client = client(&proxy.url).await;
    let name = unique("late");
    let sender = client.sender(name.as_str()).on_unknown(OnUnknown::Fail).await.unwrap();
    // Half of the silence after which a connection counts as lost.
    proxy.set(Back::After(Duration::from_secs(8)));
    let receipts = soon(sender.send_batch(["a", "b"])).await.unwrap();
    assert!(receipts.iter().all(|r| r.is_some_and(|r| !r.retried)));
    proxy.set(Back::After(Duration::ZERO));
    let source = Source::new(Address::queue(&name).unwrap());
    assert_eq!(client.stats(&source).await.unwrap().ready, Some(2));
    remove(&client, &name).await;
}

async fn confirmations_are_awaited_side_by_side(url: String) {
    const COUNT: u32 = 500;
    const AWAY: Duration = Duration::from_millis(50);
    let proxy = Proxy::start(&url).await;
    let client = client(&proxy.url).await;
    let name = unique("far");
    let sender = client.sender(name.as_str()).await.unwrap();
    proxy.set(Back::After(AWAY));
    let limit = AWAY * COUNT / 5;
    let start = Instant::now();
    soon(try_join_all((0..COUNT).map(|n| sender.send(n.to_string())))).await.unwrap();
    assert!(start.elapsed() < limit, "tasks: {:?}", start.elapsed());
    let start = Instant::now();
    soon(sender.send_batch((0..COUNT).map(|n| n.to_string()))).await.unwrap();
    assert!(start.elapsed() < limit, "batch: {:?}", start.elapsed());
    let start = Instant::now();
    let mut verdicts = Vec::new();
    for n in 0..COUNT {
        verdicts.push(soon(sender.submit(n.to_string())).await.unwrap());
    }
    soon(try_join_all(verdicts)).await.unwrap();
    assert!(start.elapsed() < limit, "submitted: {:?}", start.elapsed());
    remove(&client, &name).await;
}

async fn answers_are_not_awaited_one_by_one(url: String) {
    const COUNT: u32 = 500;
    const AWAY: Duration = Duration::from_millis(50);
    let proxy = Proxy::start(&url).await;
    let client = client(&proxy.url).await;
    let name = unique("acks");
    client.sender(name.as_str()).await.unwrap().send_batch((0..COUNT).map(|n| n.to_string())).await.unwrap();
    let mut receiver = client.receiver(name.as_str()).prefetch(1000).await.unwrap();
    proxy.set(Back::After(AWAY));
    let start = Instant::now();
    for _ in 0..COUNT {
        soon(receiver.receive()).await.unwrap().ack();
    }
    soon(receiver.flush()).await.unwrap();
    assert!(start.elapsed() < AWAY * COUNT / 5, "{:?}", start.elapsed());
    receiver.close(PATIENCE).await;
    remove(&client, &name).await;
}

async fn a_message_without_a_queue_disturbs_nobody_else(url: String) {
    let client = client(&url).await;
    let mut events = client.events();
    let names: Vec<_> = (0..4).map(|_| unique("undisturbed")).collect();
    let nowhere = Address::queue(&unique("nowhere")).unwrap();
    let senders = join_all(names.iter().map(|name| async { client.sender(name.as_str()).await.unwrap() })).await;
    for round in 0..100 {
        let lost = async {
            let error = senders[0].send(Message::new("lost").to(nowhere.clone())).await.unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unroutable, Outcome::Rejected));
        };
        let others = senders.iter().map(|sender| async {
            let receipt = sender.send(round.to_string()).await.unwrap();
            assert!(!receipt.retried);
        });
        soon(async { tokio::join!(lost, join_all(others)) }).await;
    }
    while let Some(event) = events.next().now_or_never() {
        let kind = event.unwrap().kind;
        assert_ne!(kind, EventKind::Disconnected);
    }
    for name in &names {
        let source = Source::new(Address::queue(name).unwrap());
        assert_eq!(client.stats(&source).await.unwrap().ready, Some(100));
        remove(&client, name).await;
    }
}

async fn a_message_that_was_sent_again_is_the_same_for_its_receiver(url: String) {
    let proxy = Proxy::start(&url).await;
    let far = client(&format!("{}?max_backoff=100ms", proxy.url)).await;
    let near = client(&url).await;
    let name = unique("twice");
    let sender = far.sender(name.as_str()).await.unwrap();
    let mut receiver = near.receiver(name.as_str()).await.unwrap();
    // The broker has them, and its word is lost with the connection.
    proxy.set(Back::Held);
    let messages: Vec<_> = (0..3).map(|n| Message::new(n.to_string()).id(format!("id-{n}"))).collect();
    let sending = tokio::spawn(async move { sender.send_batch(messages).await });
    let mut ids = BTreeMap::new();
    for _ in 0..3 {
        let delivery = soon(receiver.receive()).await.unwrap();
        *ids.entry((delivery.text().unwrap().to_owned(), delivery.get_id().unwrap().to_owned())).or_insert(0) += 1;
        delivery.ack();
    }
    // In this order, or what is held gets through before the end.
    proxy.cut();
    proxy.set(Back::After(Duration::ZERO));
    let receipts = soon(sending).await.unwrap().unwrap();
    assert!(receipts.iter().all(|r| r.is_some_and(|r| r.retried)));
    for _ in 0..3 {
        let delivery = soon(receiver.receive()).await.unwrap();
        *ids.entry((delivery.text().unwrap().to_owned(), delivery.get_id().unwrap().to_owned())).or_insert(0) += 1;
        delivery.ack();
    }
    let expected: BTreeMap<_, _> = (0..3).map(|n| ((n.to_string(), format!("id-{n}")), 2)).collect();
    assert_eq!(ids, expected);
    receiver.close(PATIENCE).await;
    remove(&near, &name).await;
}

async fn a_message_that_died_elsewhere_tells_of_it(url: String) {
    let client = client(&url).await;
    let (first, second) = (unique("first"), unique("second"));
    let to_second = [("x-dead-letter-exchange", ""), ("x-dead-letter-routing-key", second.as_str())];
    declare(&client, &first, &to_second).await;
    let mut receiver = client.receiver(second.as_str()).await.unwrap();
    let sent = Message::new("x").ttl(Duration::from_millis(10)).header("tenant", "acme");
    client.sender(first.as_str()).await.unwrap().send(sent).await.unwrap();
    let delivery = soon(receiver.receive()).await.unwrap();
    assert_eq!(delivery.attempt(), 1);
    let names: Vec<_> = delivery.headers().iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["tenant"]);
    let Some(HeaderValue::List(deaths)) = delivery.native_headers().get("x-death") else {
        panic!("{:?}", delivery.native_headers());
    };
    let HeaderValue::Map(death) = &deaths[0] else { panic!("{deaths:?}") };
    let field = |name: &str| death.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    assert_eq!(field("reason"), Some("expired".into()));
    assert_eq!(field("queue"), Some(first.clone().into()));
    assert_eq!(field("count"), Some(1.into()));
    delivery.ack();
    receiver.close(PATIENCE).await;
    remove(&client, &first).await;
    remove(&client, &second).await;
}

async fn a_message_that_waits_for_its_retry_outlives_the_connection(url: String) {
    const DELAY: Duration = Duration::from_secs(2);
    let proxy = Proxy::start(&url).await;
    let far = client(&format!("{}?max_backoff=100ms", proxy.url)).await;
    let name = unique("waiting");
    let mut receiver = far.receiver(name.as_str()).await.unwrap();
    far.sender(name.as_str()).await.unwrap().send(Message::new("x").id("i")).await.unwrap();
    let start = Instant::now();
    soon(receiver.receive()).await.unwrap().retry_after(DELAY);
    soon(receiver.flush()).await.unwrap();
    // As a process that is killed.
    drop(proxy);
    let near = client(&url).await;
    let mut other = near.receiver(name.as_str()).await.unwrap();
    let delivery = soon(other.receive()).await.unwrap();
    assert_eq!((delivery.get_id(), delivery.attempt()), (Some("i"), 2));
    assert!(start.elapsed() >= DELAY, "{:?}", start.elapsed());
    delivery.ack();
    assert!(other.receive_batch_within(1, Duration::from_secs(1)).await.unwrap().is_empty());
    other.close(PATIENCE).await;
    remove(&near, &name).await;
}

async fn a_rejected_message_stays_while_there_is_no_place_for_dead_letters(url: String) {
    let client = client(&url).await;
    let name = unique("kept");
    let dead = Address::queue(&name).unwrap().dead_letter();
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    client.sender(name.as_str()).await.unwrap().send("x").await.unwrap();
    client.delete(dead.clone()).await.unwrap();
    soon(receiver.receive()).await.unwrap().reject("no");
    until("health tells", async || client.health().state != HealthState::Up).await;
    client.declare(&Topology::from_iter([Entry::new(dead.clone())])).await.unwrap();
    let mut graves = client.receiver(dead).discard_dead_letters().await.unwrap();
    let grave = soon(graves.receive()).await.unwrap();
    assert_eq!(grave.text(), Some("x"));
    grave.ack();
    graves.close(PATIENCE).await;
    receiver.close(PATIENCE).await;
    remove(&client, &name).await;
}

async fn a_delayed_message_keeps_what_it_had(url: String) {
    const DELAY: Duration = Duration::from_millis(300);
    let client = client(&url).await;
    let name = unique("later");
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    let sent = Message::new("x").id("i").key("k").header("b", 1).header("a", true).header("b", "again");
    client.sender(name.as_str()).await.unwrap().send(sent.clone().delay(DELAY)).await.unwrap();
    let start = Instant::now();
    let delivery = soon(receiver.receive()).await.unwrap();
    assert!(start.elapsed() >= DELAY - Duration::from_millis(50), "{:?}", start.elapsed());
    assert_eq!(delivery.headers(), sent.headers());
    let fields = (delivery.get_id(), delivery.get_key(), delivery.get_subject(), delivery.attempt());
    assert_eq!(fields, (sent.get_id(), sent.get_key(), sent.get_subject(), 1));
    delivery.ack();
    receiver.close(PATIENCE).await;
    remove(&client, &name).await;
}
