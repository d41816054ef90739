//! What reaches whom.

use std::time::Duration;

use queue_core::{ErrorKind, EventKind, Message};

use crate::common::{soon, unique};
use crate::{client, is_silent, next, texts};

pub(crate) async fn keys_choose_what_a_group_gets(url: String) {
    let client = client(&url).await;
    let name = unique("keys");
    let topic = format!("topic:{name}");
    let receiver = |group: &str| {
        client.receiver(topic.as_str()).group(group).discard_dead_letters().native("exchange_type", "topic")
    };
    let mut europe = receiver("europe").native("binding_key", "eu.*, uk").await.unwrap();
    let mut all = receiver("all").await.unwrap();
    let sender = client.sender(topic.as_str()).require_route(true).await.unwrap();
    for subject in ["eu.orders", "us.orders", "uk"] {
        sender.send(Message::new(subject).subject(subject)).await.unwrap();
    }
    assert_eq!(texts(&mut europe, 2).await, ["eu.orders", "uk"]);
    assert_eq!(texts(&mut all, 3).await, ["eu.orders", "us.orders", "uk"]);
    // A second receiver of the group that says nothing does not widen what it gets.
    let silent = client.receiver(topic.as_str()).group("europe").discard_dead_letters().await.unwrap();
    drop(silent);
    sender.send(Message::new("us").subject("us.more")).await.unwrap();
    assert_eq!(texts(&mut all, 1).await, ["us"]);
    assert!(is_silent(&mut europe).await);
    client.delete(topic.as_str()).await.unwrap();
    // A direct exchange has no key for everything.
    let direct = format!("topic:{name}-direct");
    let open = |key: &[&str]| {
        let receiver = client.receiver(direct.as_str()).group("g").discard_dead_letters();
        let receiver = receiver.native("exchange_type", "direct");
        key.iter().fold(receiver, |receiver, key| receiver.native("binding_key", *key))
    };
    assert_eq!(open(&[]).await.unwrap_err().context("option"), Some("binding_key"));
    let mut exact = open(&["a"]).await.unwrap();
    let sender = client.sender(direct.as_str()).require_route(true).await.unwrap();
    sender.send(Message::new("yes").subject("a")).await.unwrap();
    let lost = sender.send(Message::new("no").subject("b")).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Unroutable);
    assert_eq!(texts(&mut exact, 1).await, ["yes"]);
    client.delete(direct.as_str()).await.unwrap();
}

pub(crate) async fn headers_choose_what_a_group_gets(url: String) {
    let client = client(&url).await;
    let topic = format!("topic:{}", unique("headers"));
    let open = |group: &str, how: &str| {
        let receiver = client.receiver(topic.as_str()).group(group).discard_dead_letters();
        let receiver = receiver.native("exchange_type", "headers").native("binding.x-match", how);
        receiver.native("binding.region", "eu").native("binding.size", "3")
    };
    let (mut every, mut any) = (open("every", "all").await.unwrap(), open("any", "any").await.unwrap());
    let sender = client.sender(topic.as_str()).require_route(true).await.unwrap();
    sender.send(Message::new("both").header("region", "eu").header("size", 3)).await.unwrap();
    sender.send(Message::new("one").header("region", "eu").header("size", 4)).await.unwrap();
    let lost = sender.send(Message::new("neither").header("region", "us")).await.unwrap_err();
    assert_eq!(lost.kind(), ErrorKind::Unroutable);
    assert_eq!(texts(&mut any, 2).await, ["both", "one"]);
    assert_eq!(texts(&mut every, 1).await, ["both"]);
    assert!(is_silent(&mut every).await);
    client.delete(topic.as_str()).await.unwrap();
}

pub(crate) async fn a_subscriber_without_a_group_has_keys_too(url: String) {
    let client = client(&url).await;
    let topic = format!("topic:{}", unique("anonymous"));
    let receiver = client.receiver(topic.as_str()).native("exchange_type", "topic").native("binding_key", "eu.#");
    let mut receiver = receiver.native("x-max-length", "2").await.unwrap();
    let sender = client.sender(topic.as_str()).await.unwrap();
    for (text, subject) in [("no", "us"), ("yes", "eu.a")] {
        sender.send(Message::new(text).subject(subject)).await.unwrap();
    }
    assert_eq!(texts(&mut receiver, 1).await, ["yes"]);
    client.delete(topic.as_str()).await.unwrap();
}

pub(crate) async fn a_missing_exchange_type_costs_nobody_the_connection(url: String) {
    let client = client(&url).await;
    let name = unique("hash");
    let mut events = client.events();
    let mut other = client.receiver(name.as_str()).discard_dead_letters().await.unwrap();
    let topic = format!("topic:{name}-t");
    let open = |group: &str| {
        let receiver = client.receiver(topic.as_str()).group(group).discard_dead_letters();
        receiver.native("exchange_type", "x-consistent-hash")
    };
    match open("a").await {
        // The plugin is not enabled.
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
        Ok(mut a) => {
            let mut b = open("b").await.unwrap();
            let sender = client.sender(topic.as_str()).require_route(true).await.unwrap();
            for n in 0..200 {
                sender.send(Message::new("x").subject(n.to_string())).await.unwrap();
            }
            // Each message goes to one of them, and each gets some.
            let (_, _) = (next(&mut a).await, next(&mut b).await);
            client.delete(topic.as_str()).await.unwrap();
        }
    }
    client.sender(name.as_str()).await.unwrap().send("a").await.unwrap();
    assert_eq!(texts(&mut other, 1).await, ["a"]);
    let told = std::iter::from_fn(|| {
        use futures::FutureExt;
        events.next().now_or_never().flatten()
    });
    let lost: Vec<_> = told.filter(|event| event.kind == EventKind::Disconnected).collect();
    assert!(lost.is_empty(), "{lost:?}");
    client.delete(&name).await.unwrap();
}

pub(crate) async fn a_single_active_consumer_is_alone(url: String) {
    let client = client(&url).await;
    let name = unique("single");
    let open = || {
        let receiver = client.receiver(name.as_str()).discard_dead_letters();
        receiver.native("x-single-active-consumer", "true")
    };
    let (mut first, mut second) = (open().await.unwrap(), open().await.unwrap());
    let sender = client.sender(name.as_str()).await.unwrap();
    for text in ["a", "b", "c"] {
        sender.send(text).await.unwrap();
    }
    assert_eq!(texts(&mut first, 3).await, ["a", "b", "c"]);
    assert!(is_silent(&mut second).await);
    soon(first.close(Duration::from_secs(5))).await;
    sender.send("d").await.unwrap();
    assert_eq!(texts(&mut second, 1).await, ["d"]);
    client.delete(&name).await.unwrap();
}

pub(crate) async fn dead_letters_of_the_broker_arrive_at_least_once(url: String) {
    let client = client(&url).await;
    let name = unique("backstop");
    let dlq = format!("{name}-dlq");
    let mut receiver = client.receiver(name.as_str()).native("x-message-ttl", "50").await.unwrap();
    soon(receiver.close(Duration::from_secs(5))).await;
    // Asked for anything else, the server tells what it has.
    for (option, value, found) in
        [("x-dead-letter-strategy", "at-most-once", "at-least-once"), ("x-overflow", "drop-head", "reject-publish")]
    {
        let error = client.sender(name.as_str()).native(option, value).await.expect_err(option);
        assert_eq!((error.kind(), error.context("found")), (ErrorKind::Conflict, Some(found)), "{error}");
    }
    let sender = client.sender(name.as_str()).await.unwrap();
    for n in 0..20 {
        sender.send(n.to_string()).await.unwrap();
    }
    let mut dead = client.receiver(dlq.as_str()).discard_dead_letters().await.unwrap();
    let mut expired = texts(&mut dead, 20).await;
    expired.sort_by_key(|text| text.parse::<u32>().unwrap());
    assert_eq!(expired, (0..20).map(|n| n.to_string()).collect::<Vec<_>>());
    client.delete(&name).await.unwrap();
    client.delete(&dlq).await.unwrap();
}
