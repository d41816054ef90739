//! Promises of the contract, on a real broker, without the handles.

mod common;

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, UNIX_EPOCH};

use common::{
    Case, connect, consumer, is_silent, native, producer, queue, receive, receive_count, run, send, send_all, soon,
    text, unique, until,
};
use futures::FutureExt;
use lapin::options::{BasicGetOptions, BasicPublishOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel};
use queue_core::{
    Address, Answer, Consumer, ConsumerOptions, Entry, ErrorKind, HeaderValue, Headers, Message, Outcome,
    ProducerOptions, Source, Text, Topology,
};
use tokio::time::Instant;

fn main() {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => { vec![$(Case(stringify!($name), |url| $name(url).boxed_local())),*] };
    }
    run(
        common::URL,
        cases![
            acknowledged_messages_never_come_back,
            unroutable_messages_in_a_large_batch_are_named_exactly,
            a_missing_exchange_fails_its_message_alone,
            unanswered_messages_come_back_counted,
            answers_out_of_order_leave_exactly_the_others,
            every_header_comes_back_as_it_was,
            another_client_reads_and_writes_plain_messages,
            an_oversized_header_fails_its_message_alone,
            an_expired_message_is_not_delivered,
            groups_each_get_everything_and_subscribers_what_is_new,
            a_deleted_queue_ends_its_consumer,
            a_pause_gives_back_what_is_buffered,
            stop_gives_back_and_still_takes_answers,
            what_exists_is_taken_as_it_is_unless_it_differs_from_what_was_asked,
            wrong_logins_and_addresses_are_told_apart,
            closing_waits_for_confirmations_and_is_idempotent,
            a_small_prefetch_is_kept_and_not_slow,
        ],
    );
}

fn numbered(count: usize) -> Vec<Message> {
    (0..count).map(|n| Message::new(n.to_string())).collect()
}

async fn acknowledged_messages_never_come_back(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "ack").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(1000)).await;
    let mut seen = Vec::new();
    while seen.len() < 1000 {
        for received in soon(receive(&receiver)).await.unwrap() {
            assert_eq!(received.attempt, 1);
            seen.push(text(&received));
            assert!(receiver.holds(received.token));
            assert!(receiver.ack(&[received.token]).stale.is_empty());
            assert!(!receiver.holds(received.token));
            assert_eq!(receiver.ack(&[received.token]).stale, [0]);
        }
    }
    assert_eq!(seen, (0..1000).map(|n| n.to_string()).collect::<Vec<_>>());
    receiver.flush().await.unwrap();
    assert!(receiver.close(Instant::now() + common::PATIENCE).await.is_clean());
    let again = consumer(&broker, &address).await;
    assert!(is_silent(&again).await);
    assert_eq!(broker.stats(&Source::new(address.clone())).await.unwrap().ready, Some(0));
    broker.delete(&address).await.unwrap();
}

async fn unroutable_messages_in_a_large_batch_are_named_exactly(url: String) {
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
        let (done, verdict) = queue_core::Completion::new(list.len());
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

async fn a_missing_exchange_fails_its_message_alone(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "exchange").await;
    let sender = producer(&broker, &address).await;
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
    broker.delete(&address).await.unwrap();
}

async fn unanswered_messages_come_back_counted(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "retry").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(1)).await;
    let first = receive_count(&receiver, 1).await.remove(0);
    assert!(receiver.settle(vec![Answer::Extend(first.token, Duration::from_secs(60))]).stale.is_empty());
    assert!(receiver.settle(vec![Answer::Retry(first.token, Duration::ZERO)]).stale.is_empty());
    assert_eq!(receiver.settle(vec![Answer::Release(first.token)]).stale, [0]);
    let second = receive_count(&receiver, 1).await.remove(0);
    assert_eq!(second.attempt, 2);
    assert!(receiver.settle(vec![Answer::Release(second.token)]).stale.is_empty());
    let third = receive_count(&receiver, 1).await.remove(0);
    let report = receiver.close(Instant::now() + common::PATIENCE).await;
    assert_eq!(report.unanswered, 1);
    assert!(!receiver.holds(third.token));
    let other = consumer(&broker, &address).await;
    let fourth = receive_count(&other, 1).await.remove(0);
    assert!(fourth.attempt >= 3, "{}", fourth.attempt);
    broker.delete(&address).await.unwrap();
}

async fn answers_out_of_order_leave_exactly_the_others(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "order").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(200)).await;
    let all = receive_count(&receiver, 200).await;
    let mut order: Vec<_> = (0..200).collect();
    let seed = 7;
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let (kept, acked) = order.split_at(37);
    for n in acked {
        assert!(receiver.ack(&[all[*n].token]).stale.is_empty());
    }
    receiver.flush().await.unwrap();
    receiver.close(Instant::now() + common::PATIENCE).await;
    let other = consumer(&broker, &address).await;
    let back: BTreeSet<_> = receive_count(&other, kept.len()).await.iter().map(text).collect();
    assert_eq!(back, kept.iter().map(ToString::to_string).collect(), "seed {seed}");
    assert!(is_silent(&other).await);
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

async fn every_header_comes_back_as_it_was(url: String) {
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
        assert!(message.headers() == sent.headers(), "{:?}\n{:?}", message.headers(), sent.headers());
        assert!(message == sent, "{message:?} {sent:?}");
        receiver.ack(&[got.token]);
    }
    receiver.flush().await.unwrap();
    broker.delete(&address).await.unwrap();
}

async fn another_client_reads_and_writes_plain_messages(url: String) {
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

async fn an_oversized_header_fails_its_message_alone(url: String) {
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

async fn an_expired_message_is_not_delivered(url: String) {
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

async fn groups_each_get_everything_and_subscribers_what_is_new(url: String) {
    let broker = connect(&url).await.unwrap();
    let topic = Address::topic(&unique("topic")).unwrap();
    let source = |group: &str| Source::new(topic.clone()).with_group(group).unwrap();
    let entries = [Entry::new(topic.clone()), Entry::from(&source("a")), Entry::from(&source("b"))];
    broker.declare(&Topology::from_iter(entries.clone())).await.unwrap();
    broker.declare(&Topology::from_iter(entries.clone())).await.unwrap();
    broker.verify(&Topology::from_iter(entries)).await.unwrap();
    let sender = producer(&broker, &topic).await;
    send_all(&sender, vec![Message::new("1").subject("s.1")]).await;
    let options = ConsumerOptions::default();
    let anonymous = broker.consumer(&Source::new(topic.clone()), &options).await.unwrap();
    send_all(&sender, vec!["2".into()]).await;
    for group in ["a", "b"] {
        let receiver = broker.consumer(&source(group), &options).await.unwrap();
        let got = receive_count(&receiver, 2).await;
        assert_eq!(got.iter().map(text).collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(got[0].message.as_ref().unwrap().get_subject(), Some("s.1"));
        assert_eq!(got[1].message.as_ref().unwrap().get_subject(), None);
    }
    assert_eq!(receive_count(&anonymous, 1).await.iter().map(text).collect::<Vec<_>>(), ["2"]);
    // A topic without subscribers is no error, unless a route is required.
    let lonely = Address::topic(&unique("lonely")).unwrap();
    broker.declare(&Topology::from_iter([Entry::new(lonely.clone())])).await.unwrap();
    send_all(&producer(&broker, &lonely).await, numbered(1)).await;
    let mut strict = ProducerOptions::default();
    strict.require_route = true;
    let strict = broker.producer(&lonely, &strict).await.unwrap();
    assert_eq!(send(&strict, numbered(1)).await[0].as_ref().unwrap().kind(), ErrorKind::Unroutable);
    broker.delete(&lonely).await.unwrap();
    broker.delete(&topic).await.unwrap();
    broker.delete(&topic).await.unwrap();
    let error = broker.stats(&source("a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

async fn a_deleted_queue_ends_its_consumer(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "deleted").await;
    let other = queue(&broker, "kept").await;
    let receiver = consumer(&broker, &address).await;
    let kept = consumer(&broker, &other).await;
    let waiting = tokio::spawn({
        let receiver = receiver.clone();
        async move { receive(&receiver).await.map(|_| ()).unwrap_err() }
    });
    until("it waits", async || broker.stats(&Source::new(address.clone())).await.unwrap().consumers == Some(1)).await;
    broker.delete(&address).await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().kind(), ErrorKind::NotFound);
    receiver.close(Instant::now() + common::PATIENCE).await;
    send_all(&producer(&broker, &other).await, numbered(1)).await;
    receive_count(&kept, 1).await;
    broker.delete(&other).await.unwrap();
}

async fn a_pause_gives_back_what_is_buffered(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "pause").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(10)).await;
    let mut one = Vec::new();
    soon(std::future::poll_fn(|cx| receiver.poll_receive(cx, std::num::NonZeroUsize::MIN, &mut one))).await.unwrap();
    receiver.set_paused(true);
    let source = Source::new(address.clone());
    until("given back", async || broker.stats(&source).await.unwrap().ready == Some(9)).await;
    assert!(is_silent(&receiver).await);
    assert!(receiver.ack(&[one[0].token]).stale.is_empty());
    receiver.set_paused(false);
    let rest: HashSet<_> = receive_count(&receiver, 9).await.iter().map(text).collect();
    assert_eq!(rest.len(), 9);
    assert!(!rest.contains(&text(&one[0])));
    broker.delete(&address).await.unwrap();
}

async fn stop_gives_back_and_still_takes_answers(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "stop").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(10)).await;
    let mut two = Vec::new();
    let two_at_most = std::num::NonZeroUsize::new(2).unwrap();
    while two.len() < 2 {
        soon(std::future::poll_fn(|cx| receiver.poll_receive(cx, two_at_most, &mut two))).await.unwrap();
    }
    receiver.stop().await;
    assert_eq!(soon(receive(&receiver)).await.unwrap_err().kind(), ErrorKind::Closed);
    let held = two.len();
    let other = consumer(&broker, &address).await;
    receive_count(&other, 10 - held).await;
    assert!(two.iter().all(|r| receiver.ack(&[r.token]).stale.is_empty()));
    receiver.flush().await.unwrap();
    let report = receiver.close(Instant::now() + common::PATIENCE).await;
    assert!(report.is_clean(), "{report:?}");
    assert!(report.released <= 10 - held);
    assert!(is_silent(&other).await);
    broker.delete(&address).await.unwrap();
}

async fn what_exists_is_taken_as_it_is_unless_it_differs_from_what_was_asked(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = Address::queue(&unique("native")).unwrap();
    let declare = |entry: Entry| {
        let broker = broker.clone();
        async move { broker.declare(&Topology::from_iter([entry])).await.map_err(|e| e.kind()) }
    };
    let plain = Entry::new(address.clone());
    let mut classic = plain.clone();
    classic.native.insert("x-queue-type".into(), "classic".into());
    classic.native.insert("x-max-length".into(), "5".into());
    let mut other = plain.clone();
    other.native.insert("x-max-length".into(), "6".into());
    let mut guarded = plain.clone();
    guarded.dead_letter = Some(address.dead_letter());
    guarded.max_deliveries = Some(3);
    assert_eq!(broker.verify(&Topology::from_iter([plain.clone()])).await.unwrap_err().kind(), ErrorKind::NotFound);
    declare(classic.clone()).await.unwrap();
    declare(classic.clone()).await.unwrap();
    declare(plain.clone()).await.unwrap();
    declare(guarded.clone()).await.unwrap();
    broker.verify(&Topology::from_iter([plain.clone()])).await.unwrap();
    assert_eq!(declare(other.clone()).await, Err(ErrorKind::Conflict));
    broker.delete(&address).await.unwrap();
    declare(guarded.clone()).await.unwrap();
    declare(plain).await.unwrap();
    broker.purge(&address).await.unwrap();
    broker.delete(&address).await.unwrap();
}

async fn wrong_logins_and_addresses_are_told_apart(url: String) {
    let mut parts = url.splitn(2, '@');
    let hosts = parts.nth(1).unwrap().to_owned();
    let error = connect(&format!("amqp://guest:hunter2@{hosts}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    let error = connect(&format!("{url}/nowhere")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    let error = connect("amqp://guest:guest@127.0.0.1:1").await.unwrap_err();
    assert_eq!((error.kind(), error.context("host")), (ErrorKind::Connection, Some("127.0.0.1:1")));
    let error = connect(&format!("{url}?hartbeat=1s")).await.unwrap_err();
    assert_eq!(error.context("did_you_mean"), Some("heartbeat"));
    // The second host answers.
    let both = connect(&format!("amqp://guest:guest@127.0.0.1:1,{hosts}")).await.unwrap();
    both.ping().await.unwrap();
    assert!(both.health().is_up());
    let shown = format!("{both:?}");
    assert!(!shown.contains("guest"), "{shown}");
    let missing = Source::new(Address::queue(&unique("missing")).unwrap());
    let error = both.consumer(&missing, &ConsumerOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

async fn closing_waits_for_confirmations_and_is_idempotent(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "close").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    let (done, verdict) = queue_core::Completion::new(1000);
    sender.send(numbered(1000), done);
    let deadline = Instant::now() + common::PATIENCE;
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

async fn a_small_prefetch_is_kept_and_not_slow(url: String) {
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "prefetch").await;
    let sender = producer(&broker, &address).await;
    send_all(&sender, numbered(200)).await;
    let mut options = ConsumerOptions::default();
    options.prefetch = 2;
    let receiver: std::sync::Arc<dyn Consumer> =
        broker.consumer(&Source::new(address.clone()), &options).await.unwrap();
    let two = receive_count(&receiver, 2).await;
    assert!(is_silent(&receiver).await);
    let start = Instant::now();
    receiver.ack(&two.iter().map(|r| r.token).collect::<Vec<_>>());
    let mut count = 2;
    while count < 200 {
        let got = soon(receive(&receiver)).await.unwrap();
        assert!(got.len() <= 2);
        receiver.ack(&got.iter().map(|r| r.token).collect::<Vec<_>>());
        count += got.len();
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    broker.delete(&address).await.unwrap();
}
