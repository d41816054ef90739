//! Streams: read again from any position, with a place that only the receiver knows.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use futures::FutureExt;
use lapin::BasicProperties;
use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use queue_core::{
    Address, Answered, Client, ConsumerOptions, Declare, DeliveryCount, Entry, ErrorKind, EventKind, EventStream,
    Message, ProducerOptions, ReceiverBuilder, RetryVia, Sender, Source, Start, Topology,
};
use tokio::time::timeout;

use crate::common::{PATIENCE, receive, receive_count, soon, text, unique, until};
use crate::{client, is_silent, native, next, texts};

const STREAM: (&str, &str) = ("x-queue-type", "stream");

async fn stream(client: &Client, name: &str, messages: std::ops::Range<u32>) -> Sender {
    let sender = client.sender(name).native(STREAM.0, STREAM.1).await.unwrap();
    fill(&sender, messages).await;
    sender
}

async fn fill(sender: &Sender, messages: std::ops::Range<u32>) {
    sender.send_batch(messages.map(|n| n.to_string())).await.unwrap();
}

fn from(client: &Client, name: &str, start: Start) -> ReceiverBuilder {
    client.receiver(name).discard_dead_letters().start(start)
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// Has the server close the connection that consumes.
async fn break_connection(client: &Client, events: &mut EventStream, stream: &str) {
    let channel = native(client).open_channel().await.unwrap();
    // It does so when it is asked for a single message of a stream.
    channel.basic_get(stream.into(), BasicGetOptions::default()).await.unwrap_err();
    for awaited in [EventKind::Disconnected, EventKind::Connected] {
        let seen = async { while events.next().await.is_none_or(|event| event.kind != awaited) {} };
        timeout(PATIENCE, seen).await.expect("the connection breaks and comes back");
    }
}

pub(crate) async fn a_stream_is_read_from_any_position(url: String) {
    let client = client(&url).await;
    let name = unique("replay");
    let sender = stream(&client, &name, 0..10).await;
    for _ in 0..2 {
        let mut all = from(&client, &name, Start::Earliest).await.unwrap();
        for n in 0..10 {
            let delivery = next(&mut all).await;
            assert_eq!((delivery.text().unwrap(), delivery.position().offset), (&*n.to_string(), Some(n)));
            delivery.ack();
        }
        assert!(is_silent(&mut all).await, "acknowledged messages come again only to who asks for them");
    }
    let mut some = from(&client, &name, Start::Offset(6)).await.unwrap();
    assert_eq!(texts(&mut some, 4).await, numbers(6..10));
    let mut new = from(&client, &name, Start::Latest).await.unwrap();
    let mut ahead = from(&client, &name, Start::Offset(10)).await.unwrap();
    // Time is told in seconds, and found by what was written together.
    let written = SystemTime::now();
    while SystemTime::now().duration_since(written).unwrap() < Duration::from_millis(1100) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let since = SystemTime::now();
    fill(&sender, 10..12).await;
    assert_eq!(texts(&mut new, 2).await, numbers(10..12));
    assert_eq!(texts(&mut ahead, 2).await, numbers(10..12));
    assert_eq!(texts(&mut some, 2).await, numbers(10..12));
    let mut recent = from(&client, &name, Start::Time(since)).await.unwrap();
    assert_eq!(texts(&mut recent, 2).await, numbers(10..12));
    client.delete(&name).await.unwrap();
}

pub(crate) async fn a_stream_wants_a_start_and_nothing_else_takes_one(url: String) {
    let client = client(&url).await;
    let name = unique("start");
    stream(&client, &name, 0..1).await;
    let error = client.receiver(name.as_str()).discard_dead_letters().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    assert!(error.message().contains("start"), "{error}");
    let start = [Start::Earliest, Start::Latest, Start::Offset(0), Start::Time(SystemTime::now())];
    for kind in ["quorum", "classic"] {
        let other = format!("{name}-{kind}");
        client.sender(other.as_str()).native("x-queue-type", kind).await.unwrap();
        for start in start {
            let error = from(&client, &other, start).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{kind}: {error}");
        }
        client.delete(&other).await.unwrap();
    }
    let topic = format!("topic:{name}-t");
    let error = client.receiver(topic.as_str()).start(Start::Earliest).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    // A group's queue can be one: it keeps what came since it was made.
    let group = || client.receiver(topic.as_str()).group("log").discard_dead_letters().native(STREAM.0, STREAM.1);
    drop(group().start(Start::Earliest).await.unwrap());
    fill(&client.sender(topic.as_str()).await.unwrap(), 0..3).await;
    for _ in 0..2 {
        let mut receiver = group().start(Start::Earliest).await.unwrap();
        assert_eq!(texts(&mut receiver, 3).await, numbers(0..3));
    }
    let mut able = from(&client, &name, Start::Earliest).await.unwrap();
    let c = able.capabilities();
    assert!(c.replay && !c.delayed_retry && c.retry_via == RetryVia::InPlace, "{c:?}");
    assert_eq!(c.delivery_count, DeliveryCount::None);
    texts(&mut able, 1).await;
    let sender = client.sender(name.as_str()).await.unwrap();
    assert!(!sender.capabilities().ttl && !sender.capabilities().priority);
    let error = sender.send(Message::new("a").ttl(Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "a stream keeps by age, not by message");
    client.delete(&name).await.unwrap();
    client.delete(topic.as_str()).await.unwrap();
}

pub(crate) async fn a_subscription_goes_on_where_it_was_when_the_connection_broke(url: String) {
    let client = client(&url).await;
    let name = unique("goes-on");
    let sender = stream(&client, &name, 0..10).await;
    let mut events = client.events();
    let mut receiver = from(&client, &name, Start::Earliest).prefetch(5).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(next(&mut receiver).await);
    }
    // Out of order, with two left over.
    for index in [4, 1, 0] {
        assert_eq!(held.remove(index).ack(), Answered::Accepted);
    }
    receiver.flush().await.unwrap();
    break_connection(&client, &mut events, &name).await;
    assert!(held.drain(..).all(|delivery| delivery.ack() == Answered::LeaseLost));
    let expected = [numbers(2..4), numbers(5..10)].concat();
    assert_eq!(texts(&mut receiver, 7).await, expected, "the unanswered again, then the rest, nothing twice");
    // Once more, with everything answered.
    receiver.flush().await.unwrap();
    break_connection(&client, &mut events, &name).await;
    fill(&sender, 10..12).await;
    assert_eq!(texts(&mut receiver, 2).await, numbers(10..12));
    assert!(is_silent(&mut receiver).await);
    // From the end, before anything came, something may have been missed, and is told.
    let _end = from(&client, &name, Start::Latest).await.unwrap();
    break_connection(&client, &mut events, &name).await;
    let gap = async { while events.next().await.is_none_or(|event| event.kind != EventKind::Gap) {} };
    timeout(PATIENCE, gap).await.expect("a gap is told");
    client.delete(&name).await.unwrap();
}

pub(crate) async fn a_pause_loses_and_doubles_nothing_of_a_stream(url: String) {
    let client = client(&url).await;
    let name = unique("pause");
    let sender = stream(&client, &name, 0..2000).await;
    let mut receiver = from(&client, &name, Start::Earliest).prefetch(10).await.unwrap();
    let mut got = texts(&mut receiver, 3).await;
    let held = next(&mut receiver).await;
    for round in 0..3 {
        receiver.pause();
        while let Ok(delivery) = timeout(Duration::from_millis(300), receiver.receive()).await {
            let delivery = delivery.unwrap();
            got.push(delivery.text().unwrap().to_owned());
            delivery.ack();
        }
        receiver.resume();
        got.extend(texts(&mut receiver, 3).await);
        assert!(got.len() < 1900, "round {round} paused nothing");
    }
    assert_eq!(held.text().unwrap(), "3");
    assert_eq!(held.ack(), Answered::Accepted);
    let left = 1999 - got.len();
    got.extend(texts(&mut receiver, left).await);
    let expected: Vec<_> = numbers(0..2000).into_iter().filter(|n| n != "3").collect();
    assert_eq!(got, expected);
    fill(&sender, 2000..2001).await;
    assert_eq!(texts(&mut receiver, 1).await, ["2000"]);
    client.delete(&name).await.unwrap();
}

pub(crate) async fn retries_and_dead_letters_of_a_stream_stay_with_the_receiver(url: String) {
    let client = client(&url).await;
    let name = unique("retry");
    stream(&client, &name, 0..3).await;
    let mut receiver = client.receiver(name.as_str()).start(Start::Earliest).max_deliveries(3).await.unwrap();
    let first = next(&mut receiver).await;
    assert_eq!(first.attempt(), 1);
    // No delay is declared, so one that is asked for is not kept, and that is said.
    assert_eq!(first.retry_after(Duration::from_secs(60)), Answered::Unsupported);
    let mut attempts = vec![];
    let mut others = vec![];
    while attempts.len() < 2 || others.len() < 2 {
        let delivery = next(&mut receiver).await;
        if delivery.text().unwrap() == "0" {
            attempts.push(delivery.attempt());
            delivery.retry();
        } else {
            others.push(delivery.text().unwrap().to_owned());
            delivery.ack();
        }
    }
    assert_eq!((attempts, others), (vec![2, 3], numbers(1..3)));
    let mut dead = client.receiver(format!("{name}-dlq")).discard_dead_letters().await.unwrap();
    assert_eq!(texts(&mut dead, 1).await, ["0"]);
    assert!(is_silent(&mut receiver).await);
    let mut again = from(&client, &name, Start::Earliest).await.unwrap();
    assert_eq!(texts(&mut again, 3).await, numbers(0..3), "nothing was taken off the stream");
    client.delete(&name).await.unwrap();
    client.delete(&format!("{name}-dlq")).await.unwrap();
}

pub(crate) async fn a_stream_cannot_be_purged_and_nobody_notices(url: String) {
    let client = client(&url).await;
    let name = unique("purge");
    let sender = stream(&client, &name, 0..2).await;
    let mut events = client.events();
    let error = soon(client.purge(&name)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    fill(&sender, 2..3).await;
    let mut receiver = from(&client, &name, Start::Earliest).await.unwrap();
    assert_eq!(texts(&mut receiver, 3).await, numbers(0..3));
    let told = std::iter::from_fn(|| events.next().now_or_never().flatten());
    assert_eq!(told.filter(|event| event.kind == EventKind::Disconnected).count(), 0);
    client.delete(&name).await.unwrap();
}

pub(crate) async fn a_queue_that_was_remade_as_a_stream_is_one(url: String) {
    let (client, other) = (client(&url).await, crate::client(&url).await);
    let name = unique("remade");
    for declare in [Declare::Create, Declare::Verify, Declare::Assume] {
        client.receiver(name.as_str()).discard_dead_letters().await.unwrap().close(PATIENCE).await;
        other.delete(&name).await.unwrap();
        stream(&other, &name, 0..2).await;
        let error = client.receiver(name.as_str()).discard_dead_letters().declare(declare).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{declare:?}: {error}");
        let mut all = from(&client, &name, Start::Earliest).declare(declare).await.unwrap();
        assert_eq!(texts(&mut all, 2).await, numbers(0..2), "{declare:?}");
        all.close(PATIENCE).await;
        other.delete(&name).await.unwrap();
    }
}

pub(crate) async fn a_receiver_whose_queue_became_a_stream_says_so(url: String) {
    let (client, other) = (client(&url).await, crate::client(&url).await);
    let name = unique("became");
    let sender = other.sender(name.as_str()).await.unwrap();
    let source = Source::new(Address::queue(&name).unwrap());
    let mut events = client.events();
    let receiver = client.broker().consumer(&source, &ConsumerOptions::default()).await.unwrap();
    let consumers = async || client.broker().stats(&source).await.unwrap().consumers;
    // A copy of what stood in a stream is a message like others.
    let mut copy = FieldTable::default();
    copy.insert("x-stream-offset".into(), AMQPValue::LongLongInt(7));
    let properties = BasicProperties::default().with_headers(copy);
    let channel = native(&other).open_channel().await.unwrap();
    let exchange = ShortString::default();
    channel.basic_publish(exchange, name.as_str().into(), Default::default(), b"copy", properties).await.unwrap();
    sender.send("plain").await.unwrap();
    let got = receive_count(&receiver, 2).await;
    assert_eq!(got.iter().map(text).collect::<BTreeSet<_>>(), BTreeSet::from(["copy".into(), "plain".into()]));
    assert!(got.iter().all(|one| one.position.offset.is_none()));
    assert!(receiver.ack(&got.iter().map(|one| one.token).collect::<Vec<_>>()).stale.is_empty());
    receiver.flush().await.unwrap();
    receiver.set_paused(true);
    until("paused", async || consumers().await == Some(0)).await;
    other.delete(&name).await.unwrap();
    let sender = stream(&other, &name, 0..1).await;
    break_connection(&client, &mut events, &name).await;
    receiver.set_paused(false);
    let refused = async {
        loop {
            // From when it reads again on.
            fill(&sender, 1..2).await;
            if let Ok(received) = timeout(Duration::from_millis(100), receive(&receiver)).await {
                return received.unwrap_err();
            }
        }
    };
    let error = soon(refused).await;
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    receiver.close(tokio::time::Instant::now() + PATIENCE).await;
    client.ping().await.unwrap();
    let told = std::iter::from_fn(|| events.next().now_or_never().flatten());
    assert_eq!(told.filter(|event| event.kind == EventKind::Disconnected).count(), 0);
    other.delete(&name).await.unwrap();
}

pub(crate) async fn a_topic_takes_nothing_from_a_queue_of_its_name(url: String) {
    let client = client(&url).await;
    let name = unique("namesake");
    let (queue, topic) = (Address::queue(&name).unwrap(), Address::topic(&name).unwrap());
    let mut log = Entry::new(queue.clone());
    log.native = [(STREAM.0.to_owned(), STREAM.1.to_owned())].into();
    let broker = client.broker();
    broker.declare(&Topology::from_iter([log, Entry::new(topic.clone())])).await.unwrap();
    let ttl = async |to| broker.producer(to, &ProducerOptions::default()).await.unwrap().capabilities().ttl;
    assert!(!ttl(&queue).await && ttl(&topic).await);
    broker.delete(&queue).await.unwrap();
    broker.delete(&topic).await.unwrap();
}
