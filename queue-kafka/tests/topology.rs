//! Connecting, topology and life of handles, on a real broker (`ANYQUEUE_TEST_KAFKA_URL`).

mod common;

use std::time::Duration;

use common::*;
use queue_core::{
    Address, Completion, ConsumerOptions, Entry, ErrorKind, EventKind, Events, Message, ProducerOptions, Source,
    Topology,
};
use queue_kafka::rdkafka::ClientConfig;
use queue_kafka::rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use tokio::time::Instant;

fn main() {
    run(&[
        ("a_missing_topic_is_not_found", a_missing_topic_is_not_found),
        ("unknown_native_options_are_refused", unknown_native_options_are_refused),
        ("an_absent_broker_is_a_connection_error_in_time", an_absent_broker_is_a_connection_error_in_time),
        ("declaring_again_changes_nothing_and_differences_conflict", declaring_again),
        ("a_purge_empties_and_stats_tell", a_purge_empties_and_stats_tell),
        ("each_partition_tells_its_lag", each_partition_tells_its_lag),
        ("a_transaction_counts_once_it_is_committed", a_transaction_counts_once_it_is_committed),
        ("everything_is_closed_after_a_close", everything_is_closed_after_a_close),
        ("opening_and_closing_leaks_no_threads", opening_and_closing_leaks_no_threads),
        ("what_a_purge_removed_unread_is_told", what_a_purge_removed_unread_is_told),
        ("messages_packed_by_any_codec_are_read", messages_packed_by_any_codec_are_read),
    ]);
}

fn a_missing_topic_is_not_found() {
    block_on(async {
        let rig = Rig::new(1).await;
        let missing: Address = fresh_name().parse().unwrap();
        let begun = Instant::now();
        let error = rig.broker.producer(&missing, &ProducerOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let source = Source::new(missing.clone());
        let error = rig.broker.consumer(&source, &ConsumerOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let error = rig.broker.verify(&Topology::from_iter([Entry::from(&source)])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(rig.broker.purge(&missing).await.unwrap_err().kind(), ErrorKind::NotFound);
        rig.broker.delete(&missing).await.unwrap();
        let illegal = Address::queue("no/such name".replace(' ', "").as_str()).unwrap();
        let error = rig.broker.producer(&illegal, &ProducerOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(begun.elapsed() < Duration::from_secs(5));
        rig.end().await;
    });
}

fn unknown_native_options_are_refused() {
    block_on(async {
        let url = url().unwrap();
        for (option, name) in [
            ("kafka.no.such.option=1", "no.such.option"),
            ("kafka.acks=1", "acks"),
            ("kafka.linger.ms=soon", "linger.ms"),
            ("partitons=3", "partitons"),
        ] {
            let error = connect_to(&format!("{url}?{option}")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{option}");
            assert!(error.to_string().contains(name), "{error}");
        }
        connect_to(&format!("{url}?kafka.compression.type=gzip")).await.unwrap().close(in_secs(5)).await;
    });
}

fn an_absent_broker_is_a_connection_error_in_time() {
    block_on(async {
        let mut endpoint: queue_core::Endpoint = "kafka://127.0.0.1:1,127.0.0.1:2".parse().unwrap();
        endpoint.connect_timeout = Duration::from_secs(2);
        let begun = Instant::now();
        let error = (queue_kafka::DRIVER.connect)(endpoint, Events::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection);
        assert!(error.to_string().contains("127.0.0.1:1,127.0.0.1:2"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    });
}

fn declaring_again() {
    block_on(async {
        let rig = Rig::new(3).await;
        let plain = Topology::from_iter([Entry::new(rig.queue.clone())]);
        rig.broker.declare(&plain).await.unwrap();
        rig.broker.verify(&plain).await.unwrap();
        let mut entry = Entry::new(rig.queue.clone());
        entry.partitions = Some(5);
        let error = rig.broker.declare(&Topology::from_iter([entry.clone()])).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.context("asked"), error.context("found")),
            (ErrorKind::Conflict, Some("5"), Some("3"))
        );
        assert_eq!(rig.broker.verify(&Topology::from_iter([entry])).await.unwrap_err().kind(), ErrorKind::Conflict);
        let mut entry = Entry::new(rig.queue.clone());
        entry.retention = Some(Duration::from_secs(60));
        let error = rig.broker.declare(&Topology::from_iter([entry])).await.unwrap_err();
        assert_eq!((error.kind(), error.context("found")), (ErrorKind::Conflict, Some("-1")));
        // Twelve partitions unless asked.
        let topic = Address::topic(&fresh_name()).unwrap();
        rig.broker.declare(&Topology::from_iter([Entry::new(topic.clone())])).await.unwrap();
        let mut entry = Entry::new(topic.clone());
        entry.partitions = Some(12);
        rig.broker.verify(&Topology::from_iter([entry])).await.unwrap();
        rig.broker.delete(&topic).await.unwrap();
        rig.broker.delete(&topic).await.unwrap();
        rig.broker.delete(&rig.queue).await.unwrap();
        assert_eq!(rig.broker.verify(&plain).await.unwrap_err().kind(), ErrorKind::NotFound);
        rig.end().await;
    });
}

fn a_purge_empties_and_stats_tell() {
    block_on(async {
        let rig = Rig::new(3).await;
        let source = Source::new(rig.queue.clone());
        rig.send(numbered(0..30)).await;
        assert_eq!(rig.broker.stats(&source).await.unwrap().ready, Some(30));
        rig.broker.purge(&rig.queue).await.unwrap();
        assert_eq!(rig.broker.stats(&source).await.unwrap().ready, Some(0));
        let consumer = rig.consumer().await;
        rig.send(numbered(30..31)).await;
        assert_eq!(text(&receive(&*consumer, 1).await[0]), "30");
        rig.broker.ping().await.unwrap();
        assert!(rig.broker.health().is_up());
        rig.end().await;
    });
}

/// The lag of each partition, in order.
async fn lags(rig: &Rig) -> Vec<(u32, u64)> {
    let stats = rig.broker.stats(&Source::new(rig.queue.clone())).await.unwrap();
    let lags: Vec<_> = stats.partitions.iter().map(|p| (p.partition, p.lag.unwrap())).collect();
    assert_eq!(stats.lag, Some(lags.iter().map(|(_, lag)| lag).sum()));
    lags
}

fn each_partition_tells_its_lag() {
    block_on(async {
        let rig = Rig::new(3).await;
        assert_eq!(lags(&rig).await, [(0, 0), (1, 0), (2, 0)]);
        rig.send(numbered(0..30)).await;
        let consumer = rig.consumer().await;
        let received = receive(&*consumer, 30).await;
        let of = |partition: u32| received.iter().filter(move |r| r.position.partition == Some(partition));
        let counts = [0, 1, 2].map(|p| (p, of(p).count() as u64));
        assert!(counts.iter().all(|(_, count)| *count > 0), "{counts:?}");
        // What is handed out and not acknowledged counts.
        assert_eq!(lags(&rig).await, counts);
        consumer.ack(&of(1).map(|r| r.token).collect::<Vec<_>>());
        consumer.ack(&[of(2).next().unwrap().token]);
        consumer.flush().await.unwrap();
        assert_eq!(lags(&rig).await, [counts[0], (1, 0), (2, counts[2].1 - 1)]);
        // Who reads without a group leaves no trace.
        let topic = Source::new(Address::topic(rig.queue.name()).unwrap());
        assert!(rig.broker.stats(&topic).await.unwrap().partitions.is_empty());
        rig.end().await;
    });
}

fn a_transaction_counts_once_it_is_committed() {
    block_on(async {
        let rig = Rig::new(1).await;
        let native = rig.broker.native().downcast_ref::<ClientConfig>().unwrap();
        let producer: BaseProducer = native.clone().set("transactional.id", rig.queue.name()).create().unwrap();
        producer.init_transactions(Duration::from_secs(30)).unwrap();
        producer.begin_transaction().unwrap();
        producer.send(BaseRecord::<(), str>::to(rig.queue.name()).payload("one")).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(10)).unwrap();
        // It is there, and handed to nobody who reads what is committed.
        let all = connect_to(&format!("{}?kafka.isolation.level=read_uncommitted", url().unwrap())).await.unwrap();
        assert_eq!(all.stats(&Source::new(rig.queue.clone())).await.unwrap().lag, Some(1));
        all.close(in_secs(10)).await;
        assert_eq!(lags(&rig).await, [(0, 0)]);
        producer.commit_transaction(Duration::from_secs(10)).unwrap();
        // The message, and the mark behind it, which is written soon after the commit.
        while lags(&rig).await != [(0, 2)] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let consumer = rig.consumer().await;
        let received = receive(&*consumer, 1).await;
        consumer.ack(&[received[0].token]);
        consumer.flush().await.unwrap();
        assert_eq!(lags(&rig).await, [(0, 1)]);
        // What comes behind the mark takes the position past it.
        rig.send(numbered(2..3)).await;
        let received = receive(&*consumer, 1).await;
        consumer.ack(&[received[0].token]);
        consumer.flush().await.unwrap();
        assert_eq!(lags(&rig).await, [(0, 0)]);
        rig.end().await;
    });
}

fn everything_is_closed_after_a_close() {
    block_on(async {
        let rig = Rig::new(1).await;
        let (producer, consumer) = (rig.producer().await, rig.consumer().await);
        let begun = Instant::now();
        let waits = some(&*consumer, 1);
        let close = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            rig.broker.close(in_secs(10)).await
        };
        let (waits, report) = tokio::join!(waits, close);
        assert_eq!(waits.unwrap_err().kind(), ErrorKind::Closed);
        assert!(report.is_clean(), "{report:?}");
        println!("a close took {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(8));
        let (done, verdict) = Completion::new(1);
        producer.send(numbered(0..1), done);
        assert_eq!(verdict.await.unwrap_err().failures()[0].1.kind(), ErrorKind::Closed);
        let error = rig.broker.producer(&rig.queue, &ProducerOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Closed);
        assert_eq!(rig.broker.ping().await.unwrap_err().kind(), ErrorKind::Closed);
        assert!(rig.broker.close(in_secs(1)).await.is_clean());
    });
}

fn opening_and_closing_leaks_no_threads() {
    fn threads() -> usize {
        std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
    }
    block_on(async {
        let rig = Rig::new(1).await;
        for _ in 0..3 {
            rig.producer().await.close(in_secs(5)).await;
            rig.consumer().await.close(in_secs(10)).await;
        }
        let before = threads();
        for _ in 0..20 {
            rig.producer().await.close(in_secs(5)).await;
            rig.consumer().await.close(in_secs(10)).await;
        }
        let deadline = in_secs(10);
        // Other tests run side by side, so there is some play.
        while threads() > before + 12 {
            assert!(Instant::now() < deadline, "{before} threads became {}", threads());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        rig.end().await;
    });
}

fn what_a_purge_removed_unread_is_told() {
    block_on(async {
        let rig = Rig::new(1).await;
        rig.send(numbered(0..10)).await;
        let consumer = rig.consumer().await;
        let got = receive(&*consumer, 3).await;
        consumer.ack(&[got[0].token, got[2].token]);
        consumer.close(in_secs(10)).await;
        rig.broker.purge(&rig.queue).await.unwrap();
        rig.send(numbered(10..11)).await;
        let mut options = ConsumerOptions::default();
        options.events = Events::new();
        let mut events = options.events.listen();
        let consumer = rig.consumer_with(options).await;
        assert_eq!(text(&receive(&*consumer, 1).await[0]), "10");
        let event = tokio::time::timeout(Duration::from_secs(60), events.next()).await.unwrap().unwrap();
        assert_eq!(event.kind, EventKind::Expired);
        let error = event.error.unwrap();
        assert_eq!((error.context("from"), error.context("to")), (Some("1"), Some("10")));
        rig.end().await;
    });
}

fn messages_packed_by_any_codec_are_read() {
    block_on(async {
        for codec in ["gzip", "snappy", "lz4", "zstd"] {
            // Whatever was sent, the broker packs it so.
            let broker = connect_to(&format!("{}?kafka.compression.type={codec}", url().unwrap())).await.unwrap();
            let mut entry = Entry::new(fresh_name().parse().unwrap());
            entry.native.insert("compression.type".to_owned(), codec.to_owned());
            let rig = Rig { broker, queue: entry.address.clone() };
            rig.broker.declare(&Topology::from_iter([entry])).await.unwrap();
            let message = Message::new(vec![b'x'; 10_000]);
            rig.send(vec![message.clone()]).await;
            let received = receive(&*rig.consumer().await, 1).await.remove(0);
            assert_eq!(received.message.unwrap().payload(), message.payload(), "{codec}");
            rig.end().await;
        }
    });
}
