//! Order by key with a single active consumer, and pauses that the server makes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use queue_core::{Client, Declare, Delivery, ErrorKind, Message, Ordering, ReceiverBuilder};

use crate::common::{soon, unique};
use crate::{client, native, next};

fn ordered(client: &Client, name: &str) -> ReceiverBuilder {
    let receiver = client.receiver(name).native("x-single-active-consumer", "true");
    receiver.prefetch(10).ordering(Ordering::PerKey).backoff(Duration::from_millis(20), Duration::from_millis(20))
}

/// Answers a message, which is the next of its key.
fn work(delivery: Delivery, done: &mut HashMap<String, usize>, retry: bool) {
    let key = String::from_utf8_lossy(delivery.get_key().unwrap()).into_owned();
    let due = done.entry(key.clone()).or_default();
    assert_eq!(delivery.text().unwrap(), due.to_string(), "{key}");
    if retry && delivery.attempt() == 1 {
        delivery.retry();
    } else {
        *due += 1;
        delivery.ack();
    }
}

pub(crate) async fn a_single_active_consumer_keeps_the_order_of_keys(url: String) {
    let (client, other) = (client(&url).await, client(&url).await);
    let name = unique("order");
    let mut first = ordered(&client, &name).await.unwrap();
    let mut second = ordered(&other, &name).await.unwrap();
    let sender = client.sender(name.as_str()).await.unwrap();
    let batch = (0..100).map(|n| Message::new(format!("{}", n / 4)).key(format!("key-{}", n % 4)));
    sender.send_batch(batch).await.unwrap();
    let mut done = HashMap::new();
    for n in 0..60 {
        work(next(&mut first).await, &mut done, n % 7 == 0);
    }
    // The other takes over, with what was buffered and not answered.
    first.close(Duration::from_secs(5)).await;
    while done.values().sum::<usize>() < 100 {
        work(next(&mut second).await, &mut done, false);
    }
    let refused = client.receiver(unique("unordered")).ordering(Ordering::PerKey).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    client.delete(&name).await.unwrap();
    client.delete(&format!("{name}-dlq")).await.unwrap();
}

pub(crate) async fn a_retry_without_a_delay_is_paused_by_the_server_where_it_was_told_to(url: String) {
    let client = client(&url).await;
    let name = unique("paused");
    let receiver = client.receiver(name.as_str()).max_deliveries(3).backoff(Duration::ZERO, Duration::ZERO);
    let receiver = receiver.native("x-delayed-retry-type", "failed").native("x-delayed-retry-min", "700");
    let opened = receiver.native("x-delayed-retry-max", "5000").await;
    if native(&client).server_version().unwrap() < (4, 3, 0) {
        assert_eq!(opened.unwrap_err().kind(), ErrorKind::Unsupported);
        return;
    }
    let mut receiver = opened.unwrap();
    assert!(receiver.capabilities().own_backoff);
    client.sender(name.as_str()).await.unwrap().send(Message::new("a")).await.unwrap();
    let mut since = Instant::now();
    for attempt in 1..=3 {
        let delivery = next(&mut receiver).await;
        // The server's pause grows with each failure; the library's own would be none at all.
        let pause = Duration::from_millis(700) * (attempt - 1);
        assert!(since.elapsed() >= pause, "attempt {attempt} came after {:?}", since.elapsed());
        assert_eq!(delivery.attempt(), attempt);
        since = Instant::now();
        delivery.retry();
    }
    // Counted all the same.
    let mut dead = client.receiver(format!("{name}-dlq")).discard_dead_letters().await.unwrap();
    let letter = soon(dead.receive()).await.unwrap();
    assert_eq!(letter.headers().get("anyqueue-attempts").and_then(|a| a.as_int()), Some(3));
    letter.ack();
    client.delete(&name).await.unwrap();
    client.delete(&format!("{name}-dlq")).await.unwrap();
}

pub(crate) async fn what_is_only_assumed_is_not_promised(url: String) {
    let client = client(&url).await;
    let name = unique("assumed");
    client.sender(name.as_str()).await.unwrap();
    let assumed = |option: &str, value: &str| {
        client.receiver(name.as_str()).discard_dead_letters().declare(Declare::Assume).native(option, value)
    };
    let error = assumed("x-single-active-consumer", "true").ordering(Ordering::PerKey).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let receiver = assumed("x-delayed-retry-type", "failed").await.unwrap();
    assert!(!receiver.capabilities().own_backoff);
    client.delete(&name).await.unwrap();
    // What was looked at is.
    ordered(&client, &name).discard_dead_letters().await.unwrap().close(Duration::from_secs(5)).await;
    ordered(&client, &name).discard_dead_letters().declare(Declare::Verify).await.unwrap();
    client.delete(&name).await.unwrap();
}
