//! Retries that wait in topics, on a real broker (`ANYQUEUE_TEST_KAFKA_URL`).

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{block_on, fresh_name, run, url};
use queue_core::{
    Address, AddressKind, Answered, Client, Declare, Entry, ErrorKind, EventKind, Ordering, Receiver, Topology,
};
use queue_kafka::DRIVER;
use tokio::time::{Instant, timeout};

const CLOSE: Duration = Duration::from_secs(10);
/// Until a message that is there is handed out, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
/// Delays of the tiers.
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(6);

fn main() {
    run(&[
        (
            "a_long_retry_outlives_its_receiver_and_holds_nothing_up",
            a_long_retry_outlives_its_receiver_and_holds_nothing_up,
        ),
        ("a_delay_is_rounded_up_to_a_tier", a_delay_is_rounded_up_to_a_tier),
        ("many_retries_wait_without_filling_the_receiver", many_retries_wait_without_filling_the_receiver),
        ("a_retry_waits_in_memory_where_it_must", a_retry_waits_in_memory_where_it_must),
        ("a_tier_takes_and_keeps_what_its_topic_does", a_tier_takes_and_keeps_what_its_topic_does),
        ("a_copy_that_can_never_be_sent_waits_in_memory", a_copy_that_can_never_be_sent_waits_in_memory),
        ("tiers_that_make_no_sense_are_refused", tiers_that_make_no_sense_are_refused),
    ]);
}

async fn client() -> Client {
    let url = format!("{}?retry_tiers=6s,2s&partitions=2", url().unwrap());
    Client::connect_with(&url, &[DRIVER]).await.unwrap()
}

async fn receiver(client: &Client, queue: &str) -> Receiver {
    client.receiver(queue).prefetch(20).discard_dead_letters().await.unwrap()
}

async fn send(client: &Client, queue: &str, texts: impl IntoIterator<Item = String>) {
    let sender = client.sender(queue).await.unwrap();
    sender.send_batch(texts.into_iter().map(queue_core::Message::new)).await.unwrap();
}

/// How many records were ever written to a tier of the queue.
async fn waits_in_topic(client: &Client, queue: &str, tier: Duration) -> u64 {
    let topic = format!("{queue}--{queue}-retry-{}s", tier.as_secs());
    let source = queue_core::Source::new(queue_core::Address::derived(queue_core::AddressKind::Topic, &topic));
    // Of a group that never read: all that is there.
    client.broker().stats(&source.with_group("nobody").unwrap()).await.unwrap().lag.unwrap()
}

fn a_long_retry_outlives_its_receiver_and_holds_nothing_up() {
    block_on(async {
        let (first, queue) = (client().await, fresh_name());
        send(&first, &queue, ["retried".to_owned()]).await;
        let mut old = receiver(&first, &queue).await;
        let delivery = old.receive().await.unwrap();
        let begun = Instant::now();
        assert_eq!(delivery.retry_after(SHORT), Answered::Accepted);
        // The original is acknowledged: the position goes on.
        timeout(SOON, old.flush()).await.unwrap().unwrap();
        let lag = first.broker().stats(&queue_core::Source::new(queue.parse().unwrap())).await.unwrap().lag;
        assert_eq!((lag, waits_in_topic(&first, &queue, SHORT).await), (Some(0), 1));
        old.close(CLOSE).await;
        first.close(CLOSE).await;

        let second = client().await;
        let mut new = receiver(&second, &queue).await;
        send(&second, &queue, ["behind".to_owned()]).await;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let delivery = timeout(SOON, new.receive()).await.expect("it comes").unwrap();
            if delivery.attempt() > 1 {
                assert!(begun.elapsed() >= SHORT, "early: {:?}", begun.elapsed());
            }
            seen.push((delivery.text().unwrap().to_owned(), delivery.attempt(), delivery.headers().len()));
            assert_eq!(delivery.ack(), Answered::Accepted);
        }
        seen.sort();
        assert_eq!(seen, [("behind".to_owned(), 1, 0), ("retried".to_owned(), 2, 0)]);
        let report = new.close(CLOSE).await;
        assert!(report.errors.is_empty(), "{report:?}");
        second.close(CLOSE).await;
    });
}

fn a_delay_is_rounded_up_to_a_tier() {
    block_on(async {
        let (client, queue) = (client().await, fresh_name());
        send(&client, &queue, ["retried".to_owned()]).await;
        let mut receiver = receiver(&client, &queue).await;
        let (mut begun, mut waited) = (Instant::now(), Vec::new());
        for delay in [SHORT, SHORT + Duration::from_millis(1), LONG] {
            let delivery = timeout(SOON, receiver.receive()).await.expect("it comes").unwrap();
            waited.push((delivery.attempt(), begun.elapsed()));
            begun = Instant::now();
            assert_eq!(delivery.retry_after(delay), Answered::Accepted);
        }
        let last = timeout(SOON, receiver.receive()).await.expect("it comes").unwrap();
        waited.push((last.attempt(), begun.elapsed()));
        println!("{waited:?}");
        let least = [Duration::ZERO, SHORT, LONG, LONG];
        assert!(waited.iter().zip(least).zip(1..).all(|(((attempt, time), least), n)| *attempt == n && *time >= least));
        assert_eq!(last.ack(), Answered::Accepted);
        assert_eq!(waits_in_topic(&client, &queue, SHORT).await, 1);
        assert_eq!(waits_in_topic(&client, &queue, LONG).await, 2);
        receiver.close(CLOSE).await;
        client.close(CLOSE).await;
    });
}

fn many_retries_wait_without_filling_the_receiver() {
    block_on(async {
        const COUNT: usize = 200;
        let (client, queue) = (client().await, fresh_name());
        let mut receiver = receiver(&client, &queue).await;
        send(&client, &queue, (0..COUNT).map(|n| n.to_string())).await;
        // Ten times as many as fit into the receiver.
        for _ in 0..COUNT {
            let delivery = timeout(SOON, receiver.receive()).await.expect("it comes").unwrap();
            assert_eq!((delivery.attempt(), delivery.retry_after(LONG)), (1, Answered::Accepted));
        }
        let all_retried = Instant::now();
        send(&client, &queue, ["fresh".to_owned()]).await;
        let fresh = timeout(LONG, receiver.receive()).await.expect("what waits is not in its way").unwrap();
        assert_eq!(fresh.text(), Some("fresh"));
        fresh.ack();
        let mut seen = BTreeSet::new();
        while seen.len() < COUNT {
            let delivery = timeout(SOON, receiver.receive()).await.expect("it comes").unwrap();
            assert_eq!(delivery.attempt(), 2);
            assert!(seen.insert(delivery.text().unwrap().to_owned()), "twice: {:?}", delivery.text());
            delivery.ack();
        }
        println!("the last came {:?} after the last retry", all_retried.elapsed());
        let report = receiver.close(CLOSE).await;
        assert!(report.errors.is_empty(), "{report:?}");
        client.close(CLOSE).await;
    });
}

fn a_retry_waits_in_memory_where_it_must() {
    block_on(async {
        let client = client().await;
        // Short ones; where the order of a key is kept; and where the topics are missing.
        for (delay, ordering, declare) in [
            (SHORT / 4, Ordering::None, Declare::Create),
            (SHORT, Ordering::PerKey, Declare::Create),
            (SHORT, Ordering::None, Declare::Assume),
        ] {
            let queue = fresh_name();
            send(&client, &queue, ["retried".to_owned()]).await;
            let receiver = client.receiver(&queue).discard_dead_letters().ordering(ordering).declare(declare);
            let mut receiver = receiver.await.unwrap();
            let begun = Instant::now();
            assert_eq!(receiver.receive().await.unwrap().retry_after(delay), Answered::Accepted);
            let again = timeout(SOON, receiver.receive()).await.expect("it comes").unwrap();
            assert_eq!(again.attempt(), 2);
            assert!(begun.elapsed() >= delay);
            again.ack();
            if declare == Declare::Create {
                assert_eq!(waits_in_topic(&client, &queue, SHORT).await, 0, "{ordering:?}");
            }
            receiver.close(CLOSE).await;
        }
        client.close(CLOSE).await;
    });
}

fn a_tier_takes_and_keeps_what_its_topic_does() {
    block_on(async {
        let (client, queue) = (client().await, fresh_name());
        let mut entry = Entry::new(queue.parse().unwrap());
        entry.partitions = Some(3);
        entry.native.insert("max.message.bytes".to_owned(), "2000000".to_owned());
        client.broker().declare(&Topology::from_iter([entry])).await.unwrap();
        // What is missing is not made, and told.
        let missing = client.receiver(&queue).discard_dead_letters().declare(Declare::Verify).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
        assert!(missing.to_string().contains("retry-2s"), "{missing}");
        receiver(&client, &queue).await.close(CLOSE).await;
        client.receiver(&queue).discard_dead_letters().declare(Declare::Verify).await.unwrap().close(CLOSE).await;

        let name = format!("{queue}--{queue}-retry-2s");
        let mut tier = Entry::new(Address::derived(AddressKind::Topic, &name));
        tier.partitions = Some(3);
        tier.replication = Some(1);
        tier.retention = Some(SHORT + Duration::from_secs(7 * 24 * 3600));
        tier.native.insert("max.message.bytes".to_owned(), "2000000".to_owned());
        client.broker().verify(&Topology::from_iter([tier.clone()])).await.unwrap();
        // The comparison is one.
        tier.native.insert("max.message.bytes".to_owned(), "2000001".to_owned());
        let differs = client.broker().verify(&Topology::from_iter([tier])).await.unwrap_err();
        assert_eq!(differs.kind(), ErrorKind::Conflict);
        client.close(CLOSE).await;
    });
}

fn a_copy_that_can_never_be_sent_waits_in_memory() {
    block_on(async {
        let (client, queue) = (client().await, fresh_name());
        let mut events = client.events();
        let mut receiver = receiver(&client, &queue).await;
        // As large as can be: the copy is larger by its attempt.
        let large = vec![b'x'; receiver.capabilities().max_message_bytes];
        client.sender(&queue).await.unwrap().send(large.clone()).await.unwrap();
        let begun = Instant::now();
        assert_eq!(timeout(SOON, receiver.receive()).await.unwrap().unwrap().retry_after(SHORT), Answered::Accepted);
        let again = timeout(SOON, receiver.receive()).await.expect("it comes").unwrap();
        assert_eq!((again.attempt(), again.payload().len()), (2, large.len()));
        assert!(begun.elapsed() >= SHORT);
        assert_eq!(again.ack(), Answered::Accepted);
        assert_eq!(waits_in_topic(&client, &queue, SHORT).await, 0);
        let told = async {
            loop {
                let event = events.next().await.unwrap();
                if event.kind == EventKind::DeadLetterFailed {
                    return event.error.map(|e| e.kind());
                }
            }
        };
        assert_eq!(timeout(SOON, told).await.unwrap(), Some(ErrorKind::TooLarge));
        assert!(client.health().is_up());
        client.close(CLOSE).await;
    });
}

fn tiers_that_make_no_sense_are_refused() {
    block_on(async {
        for (tiers, what) in
            [("1s,2s,3s,4s,5s,6s,7s", "six"), ("100ms", "whole seconds"), ("1s,1s", "twice"), ("soon", "")]
        {
            let url = format!("{}?retry_tiers={tiers}", url().unwrap());
            let error = Client::connect_with(&url, &[DRIVER]).await.unwrap_err();
            assert_eq!(error.kind(), queue_core::ErrorKind::InvalidConfig, "{tiers}");
            assert!(error.to_string().contains(what) && error.to_string().contains("retry_tiers"), "{error}");
        }
    });
}
