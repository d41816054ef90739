//! Priorities: where they are looked at, and where they only travel.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use queue_core::{DeliveryCount, ErrorKind, Message};

use crate::common::{soon, unique};
use crate::{client, native, next, texts};

pub(crate) async fn a_message_of_a_higher_priority_goes_first(url: String) {
    let client = client(&url).await;
    let name = unique("priority");
    let open = || client.sender(name.as_str()).native("x-queue-type", "classic").native("x-max-priority", "5");
    let sender = open().await.unwrap();
    assert!(sender.capabilities().priority);
    for (text, priority) in [("low", 1), ("none", 0), ("high", 5), ("middle", 3)] {
        sender.send(Message::new(text).priority(priority)).await.unwrap();
    }
    let mut receiver = client.receiver(name.as_str()).prefetch(1).await.unwrap();
    assert!(receiver.capabilities().priority);
    assert_eq!(receiver.capabilities().delivery_count, DeliveryCount::Answers);
    assert_eq!(texts(&mut receiver, 4).await, ["high", "middle", "low", "none"]);
    // A sender that does not say so knows it from the queue's making, on this connection.
    assert!(client.sender(name.as_str()).await.unwrap().capabilities().priority);
    let quorum = format!("{name}-quorum");
    let sender = client.sender(quorum.as_str()).await.unwrap();
    if native(&client).server_version().unwrap() < (4, 0, 0) {
        let error = sender.send(Message::new("a").priority(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    } else {
        sender.send(Message::new("low")).await.unwrap();
        sender.send(Message::new("high").priority(9)).await.unwrap();
        let mut receiver = client.receiver(quorum.as_str()).prefetch(1).await.unwrap();
        assert_eq!(texts(&mut receiver, 2).await, ["high", "low"]);
    }
    for queue in [&name, &quorum] {
        client.delete(queue).await.unwrap();
        client.delete(&format!("{queue}-dlq")).await.unwrap();
    }
}

pub(crate) async fn a_copy_keeps_a_priority_that_its_queue_does_not_look_at(url: String) {
    let client = client(&url).await;
    let name = unique("copied");
    let wait = Duration::from_millis(50);
    // On no version are there priorities here.
    let options = [("x-queue-type", "classic")];
    let receiver = options.iter().fold(client.receiver(name.as_str()), |r, (k, v)| r.native(*k, *v));
    let mut receiver = receiver.backoff(wait, wait).max_deliveries(2).await.unwrap();
    assert!(!receiver.capabilities().priority);
    let properties = BasicProperties::default().with_priority(7);
    let channel = native(&client).open_channel().await.unwrap();
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), name.as_str().into(), options, b"a", properties).await.unwrap();
    for attempt in [1, 2] {
        let delivery = next(&mut receiver).await;
        assert_eq!((delivery.attempt(), delivery.get_priority()), (attempt, Some(7)));
        delivery.retry();
    }
    let mut dead = client.receiver(format!("{name}-dlq")).discard_dead_letters().await.unwrap();
    let letter = next(&mut dead).await;
    assert_eq!(letter.get_priority(), Some(7));
    letter.ack();
    soon(dead.close(Duration::from_secs(5))).await;
    client.delete(&name).await.unwrap();
    client.delete(&format!("{name}-dlq")).await.unwrap();
}
