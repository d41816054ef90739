//! Sending, receiving and answering, on a real broker (`ANYQUEUE_TEST_KAFKA_URL`).

mod common;

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::*;
use queue_core::{
    Address, Answer, Completion, ConsumerOptions, Entry, ErrorKind, HeaderValue, HealthState, Message, Outcome,
    ProducerOptions, Received, Source, Start, Text, Topology,
};
use tokio::time::Instant;

fn main() {
    run(&[
        ("every_field_of_a_message_comes_back", every_field_of_a_message_comes_back),
        ("only_unanswered_messages_come_again", only_unanswered_messages_come_again),
        ("a_flush_waits_for_the_broker", a_flush_waits_for_the_broker),
        ("two_consumers_share_while_one_joins_under_load", two_consumers_share_while_one_joins_under_load),
        ("a_stale_token_touches_nothing", a_stale_token_touches_nothing),
        ("no_more_than_prefetch_is_unanswered", no_more_than_prefetch_is_unanswered),
        ("a_slow_handler_keeps_its_messages", a_slow_handler_keeps_its_messages),
        ("a_message_to_a_missing_topic_fails_alone", a_message_to_a_missing_topic_fails_alone),
        ("a_topic_that_goes_away_ends_its_consumer", a_topic_that_goes_away_ends_its_consumer),
        ("a_guarded_message_is_counted_when_it_is_handed_out", a_guarded_message_is_counted_when_it_is_handed_out),
        ("a_log_that_begins_anew_is_read_whole", a_log_that_begins_anew_is_read_whole),
        ("a_topic_that_was_made_again_takes_messages", a_topic_that_was_made_again_takes_messages),
        ("a_message_that_is_too_large_is_told_so", a_message_that_is_too_large_is_told_so),
        ("groups_have_a_backlog_and_anonymous_readers_none", groups_and_anonymous_readers),
        ("a_receiver_starts_where_it_is_told", a_receiver_starts_where_it_is_told),
        ("paused_consumers_get_nothing", paused_consumers_get_nothing),
        ("a_stopped_consumer_takes_answers_and_frees_its_partitions", a_stopped_consumer_takes_answers),
        ("keys_keep_their_order", keys_keep_their_order),
        ("a_message_that_nobody_answers_is_told_by_health", a_message_that_nobody_answers_is_told_by_health),
    ]);
}

fn every_field_of_a_message_comes_back() {
    block_on(async {
        let rig = Rig::new(1).await;
        let at = UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        let sent = vec![
            Message::new(vec![0xff, 0, b'x'])
                .key(vec![0, 0xfe])
                .header("tag", "a")
                .header("tag", "b")
                .header("bytes", vec![0xff])
                .header("text bytes", b"text".to_vec())
                .header("int", 7)
                .header("float", 0.1)
                .header("bool", false)
                .header("at", at)
                .header("list", vec![HeaderValue::from(1), HeaderValue::from("x")])
                .header("map", vec![(Text::from("k"), HeaderValue::Null)])
                .header("null", HeaderValue::Null)
                .header("", "")
                .header("ünïcode", "wörld")
                .id("id-1")
                .subject("s")
                .content_type("text/plain")
                .correlation_id("c")
                .reply_to("topic:replies")
                .timestamp(at),
            Message::tombstone("k"),
            Message::new("").key(""),
            Message::new("plain").timestamp(UNIX_EPOCH + Duration::from_millis(1_700_000_000_001)),
        ];
        let before = SystemTime::now() - Duration::from_secs(5);
        rig.send(sent.clone()).await;
        let consumer = rig.consumer().await;
        let got = receive(&*consumer, sent.len()).await;
        for (sent, got) in sent.iter().zip(&got) {
            let got = got.message.as_ref().unwrap();
            assert_eq!(got.payload(), sent.payload());
            assert_eq!(got.get_key(), sent.get_key());
            assert_eq!(got.headers(), sent.headers());
            assert_eq!(got.is_tombstone(), sent.is_tombstone());
            assert_eq!(got.get_id(), sent.get_id());
            assert_eq!(got.get_subject(), sent.get_subject());
            assert_eq!(got.get_content_type(), sent.get_content_type());
            assert_eq!(got.get_correlation_id(), sent.get_correlation_id());
            assert_eq!(got.get_reply_to(), sent.get_reply_to());
            match sent.get_timestamp() {
                Some(at) => assert_eq!(got.get_timestamp(), Some(at)),
                None => assert!(got.sent_at().unwrap() > before),
            }
        }
        assert_eq!((got[3].position.partition, got[3].position.offset, got[3].attempt), (Some(0), Some(3), 1));
        rig.end().await;
    });
}

fn only_unanswered_messages_come_again() {
    block_on(async {
        let rig = Rig::new(1).await;
        rig.send(numbered(0..10)).await;
        let consumer = rig.consumer().await;
        let got = receive(&*consumer, 10).await;
        // Out of order, with 3 and 7 left over.
        for i in [9, 1, 0, 2, 8, 4, 6, 5] {
            assert!(consumer.ack(&[got[i].token]).stale.is_empty());
        }
        assert_eq!(consumer.ack(&[got[1].token]).stale, [0], "an answered message cannot be answered again");
        let report = consumer.close(in_secs(10)).await;
        assert_eq!((report.unanswered, report.released, report.errors.len()), (2, 0, 0), "{report:?}");
        assert!(consumer.close(in_secs(10)).await.is_clean());

        // The position is before 3; what was acknowledged behind it is noted beside it.
        let consumer = rig.consumer().await;
        let again = receive(&*consumer, 2).await;
        assert_eq!(texts(&again), ["3", "7"].map(str::to_owned).into());
        consumer.ack(&[again[1].token]);
        consumer.flush().await.unwrap();
        let report = consumer.close(in_secs(10)).await;
        assert_eq!(report.unanswered, 1);
        let consumer = rig.consumer().await;
        let again = receive(&*consumer, 1).await;
        assert_eq!(text(&again[0]), "3");
        consumer.ack(&[again[0].token]);
        consumer.close(in_secs(10)).await;

        let consumer = rig.consumer().await;
        assert!(nothing(&*consumer, Duration::from_secs(3)).await, "acknowledged messages never come back");
        rig.end().await;
    });
}

fn a_flush_waits_for_the_broker() {
    block_on(async {
        let rig = Rig::new(2).await;
        rig.send(numbered(0..20)).await;
        let consumer = rig.consumer().await;
        let got = receive(&*consumer, 20).await;
        consumer.ack(&got.iter().map(|r| r.token).collect::<Vec<_>>());
        let begun = Instant::now();
        consumer.flush().await.unwrap();
        println!("flush took {:?}", begun.elapsed());
        let stats = rig.broker.stats(&Source::new(rig.queue.clone())).await.unwrap();
        assert_eq!((stats.lag, stats.ready), (Some(0), Some(0)));
        consumer.flush().await.unwrap();
        rig.end().await;
    });
}

fn two_consumers_share_while_one_joins_under_load() {
    block_on(async {
        const COUNT: u32 = 3000;
        let rig = Rig::new(4).await;
        rig.send(numbered(0..COUNT)).await;
        let first = rig.consumer().await;
        let mut seen = BTreeSet::new();
        let mut acks = 0;
        let (mut by_first, mut by_second) = (0, 0);
        let batch = receive(&*first, 100).await;
        seen.extend(texts(&batch));
        by_first += batch.len();
        first.ack(&batch.iter().map(|r| r.token).collect::<Vec<_>>());
        let second = rig.consumer().await;
        // More arrives while the group rebalances, for as long as the second has got nothing.
        let producer = rig.producer().await;
        let mut sent = COUNT;
        let deadline = in_secs(60);
        while seen.len() < sent as usize || by_second == 0 {
            assert!(Instant::now() < deadline, "{} of {sent}, {by_first} and {by_second}", seen.len());
            if by_second == 0 {
                send(&*producer, numbered(sent..sent + 50)).await;
                sent += 50;
            }
            tokio::select! {
                more = some(&*first, 100) => {
                    let more = more.unwrap();
                    by_first += more.len();
                    seen.extend(texts(&more));
                    acks += more.len() - first.ack(&more.iter().map(|r| r.token).collect::<Vec<_>>()).stale.len();
                }
                more = some(&*second, 100) => {
                    let more = more.unwrap();
                    by_second += more.len();
                    seen.extend(texts(&more));
                    acks += more.len() - second.ack(&more.iter().map(|r| r.token).collect::<Vec<_>>()).stale.len();
                }
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
        }
        println!("{sent} sent, {by_first} and {by_second} received, {acks} acknowledged in time");
        let twice = by_first + by_second - sent as usize;
        assert!(twice < 600, "{twice} came twice");
        rig.end().await;
    });
}

fn a_stale_token_touches_nothing() {
    block_on(async {
        let rig = Rig::new(1).await;
        rig.send(numbered(0..3)).await;
        let first = rig.consumer().await;
        let old = receive(&*first, 3).await;
        assert!(first.holds(old[0].token));
        first.close(in_secs(10)).await;
        assert!(!first.holds(old[0].token));
        assert_eq!(first.ack(&[old[0].token, old[2].token]).stale, [0, 1]);
        assert_eq!(first.settle(vec![Answer::Release(old[1].token)]).stale, [0]);
        let second = rig.consumer().await;
        let new = receive(&*second, 3).await;
        // A token of another consumer names nothing here.
        assert_eq!(second.ack(&[old[0].token]).stale, [0]);
        assert!(second.holds(new[0].token));
        second.close(in_secs(10)).await;
        let third = rig.consumer().await;
        assert_eq!(receive(&*third, 3).await.len(), 3, "stale answers acknowledged nothing");
        rig.end().await;
    });
}

fn no_more_than_prefetch_is_unanswered() {
    block_on(async {
        let rig = Rig::new(1).await;
        rig.send(numbered(0..50)).await;
        let mut options = ConsumerOptions::default();
        options.prefetch = 10;
        let consumer = rig.consumer_with(options).await;
        let held = receive(&*consumer, 10).await;
        assert!(nothing(&*consumer, Duration::from_secs(1)).await, "the eleventh came");
        consumer.ack(&[held[4].token]);
        let more = receive(&*consumer, 1).await;
        assert_eq!(text(&more[0]), "10");
        assert!(nothing(&*consumer, Duration::from_millis(300)).await);
        consumer.ack(&held.iter().map(|r| r.token).collect::<Vec<_>>());
        assert_eq!(receive(&*consumer, 9).await.len(), 9, "the flow resumes");
        rig.end().await;
    });
}

fn a_slow_handler_keeps_its_messages() {
    block_on(async {
        let url = format!(
            "{}?kafka.max.poll.interval.ms=6000&kafka.session.timeout.ms=6000&kafka.heartbeat.interval.ms=500",
            url().unwrap()
        );
        let rig = Rig::at(&url, 1).await;
        rig.send(numbered(0..4)).await;
        let mut options = ConsumerOptions::default();
        options.prefetch = 2;
        let consumer = rig.consumer_with(options).await;
        let held = receive(&*consumer, 2).await;
        assert!(nothing(&*consumer, Duration::from_secs(9)).await);
        assert!(consumer.holds(held[0].token), "the partition was lost while a handler worked");
        assert!(consumer.ack(&held.iter().map(|r| r.token).collect::<Vec<_>>()).stale.is_empty());
        assert_eq!(receive(&*consumer, 2).await.len(), 2);
        rig.end().await;
    });
}

fn a_message_to_a_missing_topic_fails_alone() {
    block_on(async {
        let rig = Rig::new(1).await;
        let producer = rig.producer().await;
        let missing: Address = fresh_name().parse().unwrap();
        let other = Rig::new(1).await;
        let (done, verdict) = Completion::new(3);
        let begun = Instant::now();
        producer.send(
            vec![Message::new("a"), Message::new("b").to(missing), Message::new("c").to(other.queue.clone())],
            done,
        );
        let error = verdict.await.unwrap_err();
        println!("a missing topic was told after {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(15));
        let failures = error.failures();
        assert_eq!(failures.len(), 1);
        assert_eq!((failures[0].0, failures[0].1.kind()), (1, ErrorKind::NotFound));
        assert_eq!(failures[0].1.outcome(), Outcome::NotSent);
        assert_eq!(text(&receive(&*rig.consumer().await, 1).await[0]), "a");
        assert_eq!(text(&receive(&*other.consumer().await, 1).await[0]), "c");
        rig.end().await;
        other.end().await;
    });
}

fn a_topic_that_goes_away_ends_its_consumer() {
    block_on(async {
        let rig = Rig::new(1).await;
        rig.send(numbered(0..1)).await;
        let consumer = rig.consumer().await;
        receive(&*consumer, 1).await;
        rig.broker.delete(&rig.queue).await.unwrap();
        let begun = Instant::now();
        let end =
            tokio::time::timeout(Duration::from_secs(60), some(&*consumer, 1)).await.expect("it goes on for ever");
        println!("a deleted topic was told after {:?}", begun.elapsed());
        assert_eq!(end.unwrap_err().kind(), ErrorKind::NotFound);
        rig.broker.close(in_secs(10)).await;
    });
}

fn a_guarded_message_is_counted_when_it_is_handed_out() {
    block_on(async {
        let guarded = format!("{}?crash_guard=true", url().unwrap());
        let rig = Rig::at(&guarded, 1).await;
        rig.send(numbered(0..3)).await;
        let consumer = rig.consumer().await;
        let first = receive(&*consumer, 3).await;
        assert_eq!(first.iter().map(|r| r.attempt).collect::<Vec<_>>(), [1, 1, 1]);
        // The broker knows before anybody here does.
        let config = rig.broker.native().downcast_ref::<queue_kafka::rdkafka::ClientConfig>().unwrap().clone();
        let (group, topic) = (rig.queue.name().to_owned(), rig.queue.name().to_owned());
        let noted = tokio::task::spawn_blocking(move || {
            use queue_kafka::rdkafka::consumer::{BaseConsumer, Consumer as _};
            let mut config = config;
            let native: BaseConsumer = config.set("group.id", &group).create().unwrap();
            let mut list = queue_kafka::rdkafka::TopicPartitionList::new();
            list.add_partition(&topic, 0);
            let list = native.committed_offsets(list, Duration::from_secs(10)).unwrap();
            list.elements()[0].metadata().to_owned()
        });
        assert_eq!(noted.await.unwrap(), "aq1:;0x2,1x2,1x2");
        // One is done, one is given back, one is lost.
        consumer.ack(&[first[0].token]);
        consumer.settle(vec![Answer::Release(first[1].token)]);
        rig.broker.close(in_secs(10)).await;
        let again = connect_to(&guarded).await.unwrap();
        let consumer = again.consumer(&Source::new(rig.queue.clone()), &ConsumerOptions::default()).await.unwrap();
        let second = receive(&*consumer, 2).await;
        let seen: Vec<_> = second.iter().map(|r| (text(r), r.attempt)).collect();
        assert_eq!(seen, [("1".to_owned(), 1), ("2".to_owned(), 2)]);
        again.close(in_secs(10)).await;
    });
}

fn a_log_that_begins_anew_is_read_whole() {
    block_on(async {
        const PREFETCH: usize = 50;
        let rig = Rig::new(1).await;
        let mut options = ConsumerOptions::default();
        options.prefetch = PREFETCH;
        let consumer = rig.consumer_with(options).await;
        let ack = |list: &[Received]| {
            let tokens: Vec<_> = list.iter().map(|r| r.token).collect();
            assert_eq!(consumer.ack(&tokens).stale, [0; 0]);
        };
        let read = async |range: std::ops::Range<u32>| {
            let mut left: BTreeSet<String> = range.map(|n| n.to_string()).collect();
            while !left.is_empty() {
                let list = receive(&*consumer, left.len().min(PREFETCH)).await;
                list.iter().for_each(|r| assert!(left.remove(&text(r)), "{} is not of {left:?}", text(r)));
                ack(&list);
            }
        };
        rig.send(numbered(0..200)).await;
        read(0..200).await;
        // Made anew while the consumer stands at 200, which the new log does not have at first.
        rig.broker.delete(&rig.queue).await.unwrap();
        let again = Rig::named(&rig.queue, 1).await;
        again.send(numbered(1000..1100)).await;
        read(1000..1100).await;
        again.send(numbered(2000..2500)).await;
        let held = receive(&*consumer, PREFETCH).await;
        // Full for longer than it goes without a poll: its partitions are paused, and read on after that.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        ack(&held);
        let held = held.iter().map(|r| text(r).parse::<u32>().unwrap()).collect::<Vec<_>>();
        assert_eq!(held, (2000..2050).collect::<Vec<_>>());
        read(2050..2500).await;
        rig.end().await;
        again.end().await;
    });
}

fn a_topic_that_was_made_again_takes_messages() {
    // From a producer that is opened then at once, and from an old one soon.
    again(true);
    again(false);
}

fn again(reopened: bool) {
    block_on(async {
        let rig = Rig::new(1).await;
        let producer = rig.producer().await;
        let sent = async |producer: &dyn queue_core::Producer| {
            let (done, verdict) = Completion::new(1);
            producer.send(vec![Message::new("x")], done);
            verdict.await
        };
        sent(&*producer).await.unwrap();
        rig.broker.delete(&rig.queue).await.unwrap();
        let end = in_secs(30);
        while sent(&*producer).await.is_ok() {
            assert!(Instant::now() < end, "messages to a topic that is gone are confirmed");
        }
        let mut entry = Entry::new(rig.queue.clone());
        entry.partitions = Some(1);
        rig.broker.declare(&Topology::from_iter([entry])).await.unwrap();
        let end = in_secs(10);
        if reopened {
            // At once, but for what is sent again by whoever calls a producer.
            let producer = rig.producer().await;
            while let Err(error) = sent(&*producer).await {
                let all_again = error.failures().iter().all(|(_, error)| error.is_retryable());
                assert!(all_again && Instant::now() < end, "{error:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        while let Err(error) = sent(&*producer).await {
            assert!(Instant::now() < end, "{error:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        rig.end().await;
    });
}

fn a_message_that_is_too_large_is_told_so() {
    block_on(async {
        let rig = Rig::new(1).await;
        let producer = rig.producer().await;
        let max = producer.capabilities().max_message_bytes;
        send(&*producer, vec![Message::new(vec![b'x'; max])]).await;
        assert_eq!(receive(&*rig.consumer().await, 1).await[0].message.as_ref().unwrap().payload().len(), max);
        // Beyond what librdkafka takes: the core checks this before.
        let (done, verdict) = Completion::new(1);
        producer.send(vec![Message::new(vec![b'x'; 2 * max])], done);
        let (_, error) = verdict.await.unwrap_err().failures().remove(0);
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Outcome::NotSent));
        // Within its limit, beyond the topic's own.
        let mut entry = Entry::new(fresh_name().parse().unwrap());
        entry.native.insert("max.message.bytes".to_owned(), "1000".to_owned());
        let small = entry.address.clone();
        rig.broker.declare(&Topology::from_iter([entry])).await.unwrap();
        let (done, verdict) = Completion::new(1);
        producer.send(vec![Message::new(vec![b'x'; 5000]).to(small)], done);
        let (_, error) = verdict.await.unwrap_err().failures().remove(0);
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Outcome::Rejected));
        rig.end().await;
    });
}

fn groups_and_anonymous_readers() {
    block_on(async {
        let rig = Rig::new(2).await;
        let topic = Address::topic(&fresh_name()).unwrap();
        rig.broker.declare(&Topology::from_iter([Entry::new(topic.clone())])).await.unwrap();
        let producer = rig.broker.producer(&topic, &ProducerOptions::default()).await.unwrap();
        send(&*producer, numbered(0..20)).await;
        let options = ConsumerOptions::default();
        let nobody = rig.broker.consumer(&Source::new(topic.clone()), &options).await.unwrap();
        let mut groups = Vec::new();
        for group in ["billing", "audit"] {
            let source = Source::new(topic.clone()).with_group(group).unwrap();
            groups.push(rig.broker.consumer(&source, &options).await.unwrap());
        }
        send(&*producer, numbered(20..40)).await;
        for group in &groups {
            let got = receive(&**group, 40).await;
            assert_eq!(texts(&got).len(), 40);
            group.ack(&got.iter().map(|r| r.token).collect::<Vec<_>>());
        }
        let got = receive(&*nobody, 20).await;
        assert_eq!(texts(&got), (20..40).map(|i: u32| i.to_string()).collect());
        assert!(nobody.ack(&got.iter().map(|r| r.token).collect::<Vec<_>>()).stale.is_empty());
        nobody.flush().await.unwrap();
        let begun = Instant::now();
        nobody.close(in_secs(10)).await;
        println!("an anonymous consumer closed in {:?}", begun.elapsed());
        rig.end().await;
    });
}

fn a_receiver_starts_where_it_is_told() {
    block_on(async {
        let rig = Rig::new(1).await;
        let topic = Address::topic(&fresh_name()).unwrap();
        let mut entry = Entry::new(topic.clone());
        entry.partitions = Some(1);
        rig.broker.declare(&Topology::from_iter([entry])).await.unwrap();
        let producer = rig.broker.producer(&topic, &ProducerOptions::default()).await.unwrap();
        let at = |i: u64| UNIX_EPOCH + Duration::from_secs(1_700_000_000 + i);
        let messages = (0..10).map(|i| Message::new(i.to_string()).timestamp(at(i))).collect();
        send(&*producer, messages).await;
        let starts = [
            (Start::Earliest, 0),
            (Start::Latest, 10),
            (Start::Offset(4), 4),
            (Start::Offset(1000), 10),
            (Start::Time(at(7)), 7),
            (Start::Time(at(7) + Duration::from_micros(1)), 8),
            (Start::Time(at(1000)), 10),
        ];
        let mut open = Vec::new();
        for (start, first) in starts {
            for group in [Some("g"), None] {
                let mut source = Source::new(topic.clone());
                if let Some(group) = group {
                    source = source.with_group(&format!("{group}{}", fresh_name())).unwrap();
                }
                source.start = start;
                open.push((rig.broker.consumer(&source, &ConsumerOptions::default()).await.unwrap(), first, source));
            }
        }
        send(&*producer, vec![Message::new("10")]).await;
        for (consumer, first, source) in open {
            let got = receive(&*consumer, 11 - first).await;
            assert_eq!(text(&got[0]), first.to_string(), "{source:?}");
            assert_eq!(text(&got[10 - first]), "10", "{source:?}");
        }
        rig.end().await;
    });
}

fn paused_consumers_get_nothing() {
    block_on(async {
        let rig = Rig::new(1).await;
        let consumer = rig.consumer().await;
        rig.send(numbered(0..1)).await;
        let first = receive(&*consumer, 1).await;
        consumer.set_paused(true);
        rig.send(numbered(1..5)).await;
        assert!(nothing(&*consumer, Duration::from_secs(1)).await);
        assert!(consumer.ack(&[first[0].token]).stale.is_empty());
        consumer.set_paused(false);
        assert_eq!(texts(&receive(&*consumer, 4).await), (1..5).map(|i: u32| i.to_string()).collect());
        rig.end().await;
    });
}

fn a_stopped_consumer_takes_answers() {
    block_on(async {
        let rig = Rig::new(1).await;
        rig.send(numbered(0..10)).await;
        let first = rig.consumer().await;
        let held = receive(&*first, 3).await;
        first.stop().await;
        assert_eq!(some(&*first, 1).await.unwrap_err().kind(), ErrorKind::Closed);
        assert!(first.ack(&[held[0].token, held[1].token]).stale.is_empty());
        assert!(first.settle(vec![Answer::Release(held[2].token)]).stale.is_empty());
        // With everything answered it leaves the group before it is closed.
        let second = rig.consumer().await;
        let rest = receive(&*second, 8).await;
        assert_eq!(texts(&rest), (2..10).map(|i: u32| i.to_string()).collect());
        rig.end().await;
    });
}

fn keys_keep_their_order() {
    block_on(async {
        let rig = Rig::new(6).await;
        let producer = rig.producer().await;
        let messages = (0..600_u32).map(|i| Message::new(i.to_string()).key(format!("k{}", i % 7))).collect();
        send(&*producer, messages).await;
        let mut last = std::collections::BTreeMap::new();
        let consumer = rig.consumer().await;
        let mut count = 0;
        while count < 600 {
            for received in receive(&*consumer, 100).await {
                let message = received.message.as_ref().unwrap();
                let number: u32 = message.text().unwrap().parse().unwrap();
                let before = last.insert(message.get_key().unwrap().clone(), number);
                assert!(before.is_none_or(|b| b < number));
                consumer.ack(&[received.token]);
                count += 1;
            }
        }
        rig.end().await;
    });
}

fn a_message_that_nobody_answers_is_told_by_health() {
    block_on(async {
        let rig = Rig::at(&format!("{}?max_unanswered_age=2s", url().unwrap()), 1).await;
        rig.send(numbered(0..20)).await;
        let consumer = rig.consumer().await;
        let got = receive(&*consumer, 20).await;
        let tokens: Vec<_> = got.iter().map(|one| one.token).collect();
        assert_eq!(rig.broker.health().state, HealthState::Up);
        // All behind the first go on, and say nothing of it.
        assert!(consumer.ack(&tokens[1..]).stale.is_empty());
        let start = Instant::now();
        while rig.broker.health().state == HealthState::Up {
            assert!(start.elapsed() < Duration::from_secs(20), "nothing is told");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());
        let health = rig.broker.health();
        assert_eq!(health.state, HealthState::Down);
        let told = health.problems.join(" ");
        assert!(told.contains("partition 0") && told.contains(rig.queue.name()), "{told}");
        assert!(consumer.ack(&tokens[..1]).stale.is_empty());
        while rig.broker.health().state != HealthState::Up {
            assert!(start.elapsed() < Duration::from_secs(30), "{:?}", rig.broker.health());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        consumer.close(in_secs(10)).await;
        rig.end().await;
    });
}
