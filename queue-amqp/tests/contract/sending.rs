//! What is sent: verdicts, fields, limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use futures::FutureExt;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use queue_amqp::DRIVER;
use queue_core::{
    Address, Broker, Client, Completion, Declare, Entry, ErrorKind, HeaderValue, Headers, Message, Outcome,
    ProducerOptions, Source, Text, Topology,
};
use tokio::time::{Instant, timeout};

use crate::common::{
    PATIENCE, connect, consumer, producer, queue, receive, receive_count, send, send_all, soon, text, unique, until,
};
use crate::proxy::{Back, Proxy};
use crate::{is_silent, native, numbered};

pub(crate) async fn unroutable_messages_in_a_large_batch_are_named_exactly(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "mixed").await;
    let nowhere = Address::queue(&unique("nowhere")).unwrap();
    let sender = producer(&broker, &address).await;
    let mut batches = Vec::new();
    for batch in 0..20 {
        let list: Vec<_> = (0..1000)
            .map(|n| {
                let message = Message::new(format!("{batch}.{n}"));
                // Clusters and single ones; contents repeat.
                if n % 7 == 0 || (300..320).contains(&n) { message.to(nowhere.clone()) } else { message }
            })
            .collect();
        let (done, verdict) = Completion::new(list.len());
        sender.send(list.clone(), done);
        batches.push((list, verdict));
    }
    for (list, verdict) in batches {
        let failures = soon(verdict).await.unwrap_err().failures();
        let expected: Vec<_> = (0..list.len()).filter(|n| list[*n].destination().is_some()).collect();
        assert_eq!(failures.iter().map(|(n, _)| *n).collect::<Vec<_>>(), expected);
        for (_, error) in failures {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unroutable, Outcome::Rejected));
        }
    }
    // Of the same content, as many as have no queue.
    let same: Vec<_> =
        (0..100).map(|n| if n % 3 == 0 { Message::new("x").to(nowhere.clone()) } else { "x".into() }).collect();
    let failed = send(&sender, same).await.iter().filter(|f| f.is_some()).count();
    assert_eq!(failed, 34);
    // And a queue that goes away while its sender is open is no success either.
    broker.delete(&address).await.unwrap();
    let verdict = send(&sender, numbered(1)).await.remove(0).unwrap();
    assert_eq!(verdict.kind(), ErrorKind::Unroutable);
}

pub(crate) async fn senders_that_share_a_channel_get_their_own_verdicts(url: String) {
    const COUNT: usize = 1000;
    let broker = connect(&url).await.unwrap();
    let nowhere = Address::queue(&unique("nowhere")).unwrap();
    let mut addresses = Vec::new();
    for name in ["shared1", "shared2", "shared3"] {
        addresses.push(queue(&broker, name).await);
    }
    let mut batches = Vec::new();
    for round in 0..7 {
        for address in &addresses {
            let sender = producer(&broker, address).await;
            // Everywhere the same contents, some with the same id, some with an id of the application's own.
            let list: Vec<_> = (0..COUNT)
                .map(|n| match (n + round) % 5 {
                    0 => Message::new("x").to(nowhere.clone()),
                    1 => Message::new("x").id("same"),
                    2 => Message::new("x").id("other").to(nowhere.clone()),
                    3 => Message::new("x").to(addresses[n % 3].clone()),
                    _ => Message::new("x"),
                })
                .collect();
            let (done, verdict) = Completion::new(COUNT);
            sender.send(list.clone(), done);
            batches.push((list, verdict));
            // Its messages go on without it.
            drop(sender);
        }
    }
    let mut routed = 0;
    for (list, verdict) in batches {
        let failures = soon(verdict).await.unwrap_err().failures();
        let expected: Vec<_> = (0..COUNT).filter(|n| list[*n].destination() == Some(&nowhere)).collect();
        assert_eq!(failures.iter().map(|(n, _)| *n).collect::<Vec<_>>(), expected);
        assert!(failures.iter().all(|(_, error)| error.kind() == ErrorKind::Unroutable), "{failures:?}");
        routed += COUNT as u64 - expected.len() as u64;
    }
    let all = async || {
        let mut ready = 0;
        for address in &addresses {
            ready += broker.stats(&Source::new(address.clone())).await.unwrap().ready.unwrap();
        }
        ready == routed
    };
    until("what was reported as sent is there, and nothing else", all).await;
    for address in &addresses {
        broker.delete(address).await.unwrap();
    }
}

/// Makes a queue that has room for three messages.
async fn full(broker: &Arc<dyn Broker>, name: &str) {
    let channel = native(broker).open_channel().await.unwrap();
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(3));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), options, arguments).await.unwrap();
}

/// A channel that refused messages is opened again, once a second: nobody else notices.
pub(crate) async fn a_full_queue_disturbs_no_other(url: String) {
    const BATCHES: usize = 500;
    const BATCH: usize = 100;
    const REFUSED: usize = 6;
    let broker = connect(&url).await.unwrap();
    let (name, other) = (unique("full"), unique("other"));
    full(&broker, &name).await;
    let client = Client::connect_with(&url, &[DRIVER]).await.unwrap();
    let refused = client.sender(&name).declare(Declare::Assume).await.unwrap();
    let sender = client.sender(&other).native("x-queue-type", "classic").await.unwrap();
    let (start, rejected) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let told = rejected.clone();
    let sending = tokio::spawn(async move {
        let mut verdicts = Vec::new();
        // Longer than it takes to open the channel again, several times; more than the client is given wait.
        while start.elapsed() < Duration::from_secs(4)
            || verdicts.len() < BATCHES * BATCH
            || told.load(Ordering::Relaxed) < REFUSED
        {
            assert!(start.elapsed() < PATIENCE, "{told:?} messages were refused");
            for _ in 0..BATCH {
                let number = verdicts.len();
                verdicts.push(sender.submit(number.to_string()).await.unwrap());
            }
        }
        let count = verdicts.len();
        for verdict in verdicts {
            assert!(!verdict.await.unwrap().retried);
        }
        count
    });
    // Each of them waits behind what the other sender has handed over.
    while !sending.is_finished() {
        if let Err(error) = refused.send("too many").await {
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::Rejected, Outcome::Rejected), "{error:?}");
            rejected.fetch_add(1, Ordering::Relaxed);
        }
    }
    let count = sending.await.unwrap();
    let mut receiver = client.receiver(&other).declare(Declare::Assume).discard_dead_letters().await.unwrap();
    let mut next = 0;
    while next < count {
        let batch = timeout(PATIENCE, receiver.receive_batch(1000)).await.unwrap().unwrap();
        for message in batch.iter() {
            assert_eq!(message.text(), Some(next.to_string().as_str()), "in the order of the calls");
            next += 1;
        }
        batch.ack();
    }
    receiver.close(PATIENCE).await;
    client.close(PATIENCE).await;
    for name in [name, other] {
        broker.delete(&Address::queue(&name).unwrap()).await.unwrap();
    }
}

pub(crate) async fn a_message_that_the_queue_refuses_is_rejected_and_not_tried_again(url: String) {
    let broker = connect(&url).await.unwrap();
    let name = unique("full");
    full(&broker, &name).await;
    let address = Address::queue(&name).unwrap();
    let sender = producer(&broker, &address).await;
    let verdicts = send(&sender, numbered(100)).await;
    let accepted = verdicts.iter().filter(|verdict| verdict.is_none()).count();
    for error in verdicts.iter().flatten() {
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Rejected, Outcome::Rejected));
        assert!(!error.is_retryable(), "{error:?}");
    }
    // The broker counts a moment late; what it refused is not there.
    assert!((3..100).contains(&accepted), "{accepted}");
    let ready = async || broker.stats(&Source::new(address.clone())).await.unwrap().ready == Some(accepted as u64);
    until("what was accepted is there", ready).await;

    let client = Client::connect_with(&url, &[DRIVER]).await.unwrap();
    let sender = client.sender(&name).declare(Declare::Assume).await.unwrap();
    let start = Instant::now();
    let error = sender.send("one more").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Rejected, Outcome::Rejected));
    assert!(start.elapsed() < Duration::from_secs(5), "tried again: {:?}", start.elapsed());
    client.close(PATIENCE).await;
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn a_missing_exchange_disturbs_no_message_to_a_queue(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "undisturbed").await;
    let sender = producer(&broker, &address).await;
    let missing = Address::topic(&unique("missing")).unwrap();
    for _ in 0..20 {
        let mut batch = numbered(100);
        batch[50] = Message::new("lost").to(missing.clone());
        let verdicts = send(&sender, batch).await;
        let failed: Vec<_> = (0..100).filter(|n| verdicts[*n].is_some()).collect();
        assert_eq!(failed, [50]);
    }
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn a_missing_exchange_fails_its_message_alone(url: String) {
    let broker = connect(&url).await.unwrap();
    let topic = Address::topic(&unique("exchange")).unwrap();
    broker.declare(&Topology::from_iter([Entry::new(topic.clone())])).await.unwrap();
    let sender = producer(&broker, &topic).await;
    let missing = Address::topic(&unique("missing")).unwrap();
    let mut batch = numbered(20);
    batch[10] = Message::new("lost").to(missing.clone());
    let verdicts = send(&sender, batch).await;
    for (n, verdict) in verdicts.iter().enumerate() {
        match (n, verdict) {
            (..10, None) => {}
            (..10, Some(error)) => assert_eq!(error.outcome(), Outcome::Unknown),
            (10, error) => assert_eq!(error.as_ref().unwrap().kind(), ErrorKind::NotFound),
            (_, error) => assert_eq!(error.as_ref().unwrap().outcome(), Outcome::NotSent, "{n} {error:?}"),
        }
    }
    // The producer recovers.
    until("a message goes through", async || send(&sender, numbered(1)).await[0].is_none()).await;
    let error = broker.producer(&missing, &ProducerOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    broker.delete(&topic).await.unwrap();
}

pub(crate) async fn a_channel_that_closes_fails_no_message_of_a_sender_that_retries(url: String) {
    let broker = connect(&url).await.unwrap();
    let topic = Address::topic(&unique("busy")).unwrap();
    broker.declare(&Topology::from_iter([Entry::new(topic.clone())])).await.unwrap();
    let missing = Address::topic(&unique("missing")).unwrap();
    let client = Client::from_broker(broker.clone());
    let sender = client.sender(topic.to_string()).declare(Declare::Assume).await.unwrap();
    for _ in 0..5 {
        // More than is written at once: some are with the broker, some in the client, some half way, when it refuses one.
        let mut batch: Vec<_> = (0..600).map(|_| Message::new(vec![7; 100_000])).collect();
        batch[100] = Message::new("lost").to(missing.clone());
        let failures = soon(sender.send_batch(batch)).await.unwrap_err().failures();
        let shown = failures.iter().take(2).collect::<Vec<_>>();
        let kinds: Vec<_> = failures.iter().map(|(n, error)| (*n, error.kind())).collect();
        assert!(kinds == [(100, ErrorKind::NotFound)], "{} failed: {shown:#?}", failures.len());
    }
    broker.delete(&topic).await.unwrap();
}

pub(crate) async fn a_broker_that_does_not_confirm_is_not_sent_what_nobody_waits_for(url: String) {
    const GIVEN: usize = 100;
    let proxy = Proxy::start(&url).await;
    let broker = connect(&format!("{}?heartbeat=60s&max_unconfirmed={GIVEN}", proxy.url)).await.unwrap();
    let address = queue(&broker, "silent").await;
    let producer = producer(&broker, &address).await;
    let kept = || {
        let shown = format!("{producer:?}");
        let (_, kept) = shown.split_once("kept: ").unwrap();
        kept.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<usize>().unwrap()
    };
    let client = Client::from_broker(broker.clone());
    let name = address.to_string();
    let sender = client.sender(name).declare(Declare::Assume).deadline(Duration::from_millis(700)).await.unwrap();
    proxy.set(Back::Held);
    for _ in 0..4 {
        let failures = soon(sender.send_batch(numbered(3000))).await.unwrap_err().failures();
        assert_eq!(failures.len(), 3000);
        assert!(failures.iter().all(|(_, error)| error.kind() == ErrorKind::Timeout), "{failures:?}");
        assert!(kept() <= GIVEN + 3000, "{}", kept());
    }
    until("what waits is let go", async || kept() == GIVEN).await;
    let failures = soon(sender.send_batch(numbered(3000))).await.unwrap_err().failures();
    assert_eq!(failures.len(), 3000);
    proxy.set(Back::After(Duration::ZERO));
    until("the rest is answered", async || kept() == 0).await;
    // Sent once it works again, behind everything that might have been sent before.
    soon(sender.send("at last")).await.unwrap();
    let ready = async || broker.stats(&Source::new(address.clone())).await.unwrap().ready;
    until("what was given is there", async || ready().await == Some(GIVEN as u64 + 1)).await;
    broker.delete(&address).await.unwrap();
}

fn rich() -> Message {
    let at = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
    let map: Vec<(Text, HeaderValue)> = vec![("b".into(), 1.into()), ("a".into(), HeaderValue::Null)];
    Message::new(vec![0, 159, 146, 150])
        .key(vec![0, 255, b';'])
        .subject("eu.north")
        .id("id-1")
        .content_type("application/json")
        .correlation_id("c".repeat(300))
        .reply_to("replies")
        .timestamp(at)
        .header("z", "last")
        .header("a", "first")
        .header("a", "again")
        .header("", "empty name")
        .header("ünï ;%\n", "odd")
        .header("n".repeat(300), "long")
        .header("bytes", vec![255, 0])
        .header("text as bytes", b"abc".to_vec())
        .header("int", i64::MIN)
        .header("float", -0.5)
        .header("infinite", f64::INFINITY)
        .header("bool", true)
        .header("whole", UNIX_EPOCH + Duration::from_secs(5))
        .header("fraction", at)
        .header("before", UNIX_EPOCH - Duration::from_millis(1))
        .header("list", vec![HeaderValue::Int(1), "x".into(), HeaderValue::List(vec![])])
        .header("map", map)
        .header("null", HeaderValue::Null)
        .header("CC", "nobody")
        .header("x-death", "mine")
        .header("x-delivery-count", 9)
}

pub(crate) async fn every_header_comes_back_as_it_was(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "headers").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    let many: Headers = (0..1000).map(|n| (format!("h{n}"), n)).collect();
    let sent = vec![
        Message::new(""),
        Message::new("plain"),
        rich(),
        Message::tombstone("k"),
        Message::new("many").with_headers(many),
        Message::new(vec![7; 16 << 20]),
    ];
    send_all(&sender, sent.clone()).await;
    let got = receive_count(&receiver, sent.len()).await;
    for (sent, got) in sent.iter().zip(&got) {
        assert_eq!(got.attempt, 1);
        let message = got.message.as_ref().unwrap();
        // One that brings no id is given one.
        let id = message.get_id().unwrap().to_owned();
        let sent = &if sent.get_id().is_none() { sent.clone().id(id) } else { sent.clone() };
        assert!(message.headers() == sent.headers(), "{:?}\n{:?}", message.headers(), sent.headers());
        assert!(message == sent, "{message:?} {sent:?}");
        receiver.ack(&[got.token]);
    }
    receiver.flush().await.unwrap();
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn another_client_reads_and_writes_plain_messages(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "plain").await;
    let channel: Channel = native(&broker).open_channel().await.unwrap();
    let name = || address.name().into();
    let sender = producer(&broker, &address).await;
    send_all(&sender, vec![Message::new("hello").header("n", 7).header("tenant", "acme").id("i")]).await;
    let got = channel.basic_get(name(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
    assert_eq!(got.delivery.data, b"hello");
    let properties = &got.delivery.properties;
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(properties.message_id().as_ref().unwrap().as_str(), "i");
    let headers = properties.headers().as_ref().unwrap().inner();
    assert!(!headers.contains_key("anyqueue-h"), "{headers:?}");
    assert_eq!(headers.get("tenant"), Some(&AMQPValue::LongString("acme".into())));
    assert_eq!(headers.get("n"), Some(&AMQPValue::LongLongInt(7)));

    let mut table = FieldTable::default();
    table.insert("int".into(), AMQPValue::ShortInt(-3));
    table.insert("latin".into(), AMQPValue::LongString(vec![0xe9].into()));
    table.insert("utf8".into(), AMQPValue::LongString("é".into()));
    let properties = BasicProperties::default().with_headers(table).with_type("kind".into()).with_priority(3);
    let options = BasicPublishOptions::default();
    let _ = channel.basic_publish("".into(), name(), options, b"from afar", properties).await.unwrap().await.unwrap();
    let receiver = consumer(&broker, &address).await;
    let got = receive_count(&receiver, 1).await.remove(0);
    let message = got.message.unwrap();
    assert_eq!(message.headers().get("int"), Some(&HeaderValue::Int(-3)));
    assert_eq!(message.headers().get("latin"), Some(&HeaderValue::Bytes(vec![0xe9].into())));
    assert_eq!(message.headers().get("utf8"), Some(&HeaderValue::Str("é".into())));
    assert_eq!(message.native_headers().get("type").and_then(|v| v.as_str()), Some("kind"));
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn an_oversized_header_fails_its_message_alone(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "large").await;
    let sender = producer(&broker, &address).await;
    // The largest that passes: found by trying, without the broker closing the connection.
    for size in [130_900, 131_000, 131_072, 200_000] {
        let batch = vec![Message::new("a"), Message::new("b").header("big", "x".repeat(size)), Message::new("c")];
        let verdicts = send(&sender, batch).await;
        assert!(verdicts[0].is_none() && verdicts[2].is_none(), "{verdicts:?}");
        if let Some(error) = &verdicts[1] {
            assert_eq!(error.kind(), ErrorKind::TooLarge);
        }
        assert_eq!(verdicts[1].is_some(), size > 131_000 - 100, "{size}");
    }
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn an_expired_message_is_not_delivered(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "ttl").await;
    let sender = producer(&broker, &address).await;
    send_all(&sender, vec!["first".into(), Message::new("short").ttl(Duration::from_millis(50)), "last".into()]).await;
    let start = Instant::now();
    until("time passes", async || start.elapsed() > Duration::from_millis(200)).await;
    let receiver = consumer(&broker, &address).await;
    let got: Vec<_> = receive_count(&receiver, 2).await.iter().map(text).collect();
    assert_eq!(got, ["first", "last"]);
    assert!(is_silent(&receiver).await);
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn closing_waits_for_confirmations_and_is_idempotent(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "close").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    let (done, verdict) = Completion::new(1000);
    sender.send(numbered(1000), done);
    let deadline = Instant::now() + PATIENCE;
    assert!(sender.close(deadline).await.is_clean());
    assert!(verdict.now_or_never().unwrap().is_ok());
    assert_eq!(send(&sender, numbered(1)).await[0].as_ref().unwrap().kind(), ErrorKind::Closed);
    assert!(sender.close(deadline).await.is_clean());
    let report = broker.close(deadline).await;
    assert!(report.errors.is_empty(), "{report:?}");
    assert_eq!(soon(receive(&receiver)).await.unwrap_err().kind(), ErrorKind::Closed);
    assert!(broker.close(deadline).await.is_clean());
    assert_eq!(broker.ping().await.unwrap_err().kind(), ErrorKind::Closed);
    let broker = connect(&url).await.unwrap();
    until("all there", async || broker.stats(&Source::new(address.clone())).await.unwrap().ready == Some(1000)).await;
    broker.delete(&address).await.unwrap();
}
