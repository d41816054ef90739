//! What exists already, made by this library or by others.

use std::future::IntoFuture;

use futures::{FutureExt, StreamExt};
use lapin::ExchangeKind;
use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use queue_core::{Address, Client, DeliveryCount, Entry, Error, ErrorKind, EventKind, Topology};

use crate::common::{soon, unique};
use crate::{client, declare, native, next, texts};

const DURABLE: fn() -> QueueDeclareOptions = || QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };

fn entry(address: &str, options: &[(&str, &str)]) -> Entry {
    let mut entry = Entry::new(address.parse().unwrap());
    entry.native = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    entry
}

async fn asked(client: &Client, address: &str, options: &[(&str, &str)]) -> Result<(), Error> {
    soon(client.declare(&Topology::from_iter([entry(address, options)]))).await
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

pub(crate) async fn what_was_not_asked_for_is_taken_as_it_is(url: String) {
    let client = client(&url).await;
    let name = unique("taken");
    // Everything differs from what this library would make, and the types of numbers too.
    let arguments = [
        ("x-max-length", AMQPValue::LongInt(7)),
        ("x-message-ttl", AMQPValue::LongLongInt(60_000)),
        ("x-max-priority", AMQPValue::ShortShortUInt(3)),
        ("x-overflow", text("reject-publish")),
        ("x-dead-letter-exchange", text("it's but current is 'none'")),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-of-its-own", text("seven")),
    ];
    declare(&client, &name, DURABLE(), &arguments).await;
    asked(&client, &name, &[("x-max-length", "7")]).await.unwrap();
    asked(&client, &name, &[("x-single-active-consumer", "true"), ("x-of-its-own", "seven")]).await.unwrap();
    // A classic queue, although nobody said so when it was made.
    asked(&client, &name, &[("x-queue-type", "classic")]).await.unwrap();
    let error = asked(&client, &name, &[("x-max-length", "8")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let told = ["argument", "asked", "found"].map(|key| error.context(key).unwrap_or_default().to_owned());
    assert_eq!(told, ["x-max-length", "8", "7"], "{error}");
    client.delete(&name).await.unwrap();
}

pub(crate) async fn what_a_queue_counts_is_known_to_who_did_not_make_it(url: String) {
    let name = unique("counts");
    client(&url).await.sender(name.as_str()).await.unwrap();
    let client = client(&url).await;
    // The first finds it, for another dead-letter queue than it was made with; the second is told by the first.
    for _ in 0..2 {
        let receiver = client.receiver(name.as_str()).await.unwrap();
        assert_eq!(receiver.capabilities().delivery_count, DeliveryCount::Losses);
    }
    for queue in [&name, &format!("{name}-dlq")] {
        client.delete(queue).await.unwrap();
    }
}

pub(crate) async fn what_was_asked_for_and_differs_is_shown(url: String) {
    let client = client(&url).await;
    let name = unique("differs");
    asked(&client, &name, &[("x-max-length", "5")]).await.unwrap();
    for (option, value, found) in [
        ("x-queue-type", "classic", "quorum"),
        ("x-max-length", "6", "5"),
        ("x-message-ttl", "1000", "none"),
        ("x-overflow", "drop-head", "none"),
    ] {
        let error = asked(&client, &name, &[(option, value)]).await.expect_err(option);
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        let told = ["argument", "asked", "found"].map(|key| error.context(key).unwrap_or_default());
        assert_eq!(told, [option, value, found], "{error}");
    }
    // A handle says it as well, and nothing of this broke the connection for others.
    let error = client.receiver(name.as_str()).native("x-max-length", "6").await.unwrap_err();
    assert_eq!((error.kind(), error.context("found")), (ErrorKind::Conflict, Some("5")));
    client.sender(name.as_str()).native("x-max-length", "5").await.unwrap().send("a").await.unwrap();
    client.delete(&name).await.unwrap();
    client.delete(&format!("{name}-dlq")).await.unwrap();
}

pub(crate) async fn a_queue_of_another_program_just_works(url: String) {
    let client = client(&url).await;
    let transient = QueueDeclareOptions { auto_delete: true, ..QueueDeclareOptions::default() };
    let version = native(&client).server_version().unwrap();
    let mut kinds = vec![("classic", DURABLE()), ("quorum", DURABLE())];
    // From 4.3 on the server makes none of these.
    if version < (4, 3, 0) {
        kinds.push(("classic", transient));
    }
    for (kind, options) in kinds {
        let name = unique("foreign");
        let arguments = [("x-queue-type", text(kind)), ("x-max-length", AMQPValue::LongInt(100))];
        declare(&client, &name, options, &arguments).await;
        let sender = client.sender(name.as_str()).await.unwrap();
        sender.send("a").await.unwrap();
        // Asked for in particular, its durability is still its own.
        let mut receiver = client.receiver(name.as_str()).native("x-max-length", "100").await.unwrap();
        assert_eq!(texts(&mut receiver, 1).await, ["a"], "{kind}");
        drop(receiver);
        client.delete(&name).await.unwrap();
        client.delete(&format!("{name}-dlq")).await.unwrap();
    }
}

pub(crate) async fn a_queue_deleted_behind_its_receiver_costs_nobody_the_connection(url: String) {
    let client = client(&url).await;
    let mut events = client.events();
    let end = |_| {
        let client = client.clone();
        async move {
            let name = unique("left");
            let receiver = client.receiver(name.as_str()).discard_dead_letters().await.unwrap();
            drop(receiver);
            client.delete(&name).await.unwrap();
        }
    };
    futures::stream::iter(0..150).map(end).buffer_unordered(8).collect::<()>().await;
    let told = std::iter::from_fn(|| events.next().now_or_never().flatten());
    let lost: Vec<_> = told.filter(|event| event.kind == EventKind::Disconnected).collect();
    assert!(lost.is_empty(), "{lost:?}");
}

pub(crate) async fn a_queue_of_another_connection_is_refused(url: String) {
    let (client, other) = (client(&url).await, crate::client(&url).await);
    let name = unique("locked");
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    declare(&other, &name, exclusive, &[]).await;
    let error = client.receiver(name.as_str()).discard_dead_letters().await.unwrap_err();
    assert_eq!((error.kind(), error.context("queue")), (ErrorKind::Conflict, Some(name.as_str())), "{error}");
    assert!(error.message().contains("exclusive"), "{error}");
}

pub(crate) async fn an_exchange_is_compared_like_a_queue(url: String) {
    let client = client(&url).await;
    let name = unique("exchange");
    let topic = format!("topic:{name}");
    let mut arguments = FieldTable::default();
    arguments.insert("alternate-exchange".into(), text("rest"));
    let options = ExchangeDeclareOptions { internal: false, auto_delete: true, ..ExchangeDeclareOptions::default() };
    let channel = native(&client).open_channel().await.unwrap();
    channel.exchange_declare(name.as_str().into(), ExchangeKind::Direct, options, arguments).await.unwrap();
    asked(&client, &topic, &[]).await.unwrap();
    asked(&client, &topic, &[("exchange_type", "direct")]).await.unwrap();
    asked(&client, &topic, &[("exchange.alternate-exchange", "rest")]).await.unwrap();
    for (option, argument, value, found) in [
        ("exchange_type", "type", "topic", "direct"),
        ("exchange.alternate-exchange", "alternate-exchange", "other", "rest"),
    ] {
        let error = asked(&client, &topic, &[(option, value)]).await.expect_err(option);
        let told = ["exchange", "argument", "asked", "found"].map(|key| error.context(key).unwrap_or_default());
        assert_eq!((error.kind(), told), (ErrorKind::Conflict, [name.as_str(), argument, value, found]), "{error}");
    }
    client.delete(Address::topic(&name).unwrap()).await.unwrap();
}

pub(crate) async fn verifying_compares_and_makes_nothing(url: String) {
    let client = client(&url).await;
    let name = unique("verified");
    let verify = |options: &[(&str, &str)]| {
        let topology = Topology::from_iter([entry(&name, options)]);
        let client = client.clone();
        async move { soon(client.verify(&topology)).await.map_err(|e| e.kind()) }
    };
    for _ in 0..2 {
        assert_eq!(verify(&[("x-max-length", "5")]).await, Err(ErrorKind::NotFound));
    }
    asked(&client, &name, &[("x-max-length", "5")]).await.unwrap();
    verify(&[]).await.unwrap();
    verify(&[("x-max-length", "5")]).await.unwrap();
    assert_eq!(verify(&[("x-max-length", "6")]).await, Err(ErrorKind::Conflict));
    client.delete(&name).await.unwrap();
}

pub(crate) async fn a_queue_of_dead_letters_drops_none(url: String) {
    let client = client(&url).await;
    let name = unique("graves");
    let dead = format!("{name}-dlq");
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    client.sender(name.as_str()).await.unwrap().send("a").await.unwrap();
    next(&mut receiver).await.reject("no");
    soon(receiver.flush()).await.unwrap();
    // More often than newer servers have a message come back by themselves.
    for _ in 0..25 {
        let redriven = soon(client.redrive(name.as_str()).filter(|_| false).into_future()).await.unwrap();
        assert_eq!((redriven.kept, redriven.stopped.is_none()), (1, true), "{redriven:?}");
    }
    let redriven = soon(client.redrive(name.as_str()).into_future()).await.unwrap();
    assert_eq!(redriven.moved, 1, "{redriven:?}");
    assert_eq!(texts(&mut receiver, 1).await, ["a"]);
    for queue in [&name, &dead] {
        client.delete(queue).await.unwrap();
    }
}

pub(crate) async fn a_queue_of_dead_letters_with_a_limit_is_taken_as_it_is(url: String) {
    let client = client(&url).await;
    let name = unique("limited");
    let dead = format!("{name}-dlq");
    declare(&client, &dead, DURABLE(), &[("x-queue-type", text("quorum"))]).await;
    for _ in 0..2 {
        drop(client.receiver(name.as_str()).await.unwrap());
    }
    drop(client.sender(dead.as_str()).await.unwrap());
    for queue in [&name, &dead] {
        client.delete(queue).await.unwrap();
    }
}
