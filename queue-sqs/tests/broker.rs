//! What only this adapter has, against a real broker, at the level of the contract.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, UNIX_EPOCH};

use queue_core::{
    Answer, ConsumerOptions, Entry, ErrorKind, Events, HeaderValue, Message, Ordering, Outcome as Fate,
    ProducerOptions, Source, Topology,
};
use tokio::time::Instant;

mod support;
use support::*;

const SOON: Duration = Duration::from_secs(10);

fn main() {
    support::main(cases![
        a_batch_of_any_size_arrives_and_acked_messages_never_come_back,
        a_refused_entry_fails_alone,
        bodies_of_any_content_survive,
        headers_of_any_number_and_type_survive,
        a_plain_client_reads_what_is_sent_and_the_other_way_round,
        what_is_too_large_fails_alone_before_the_network,
        a_retry_comes_not_before_its_delay_and_counts,
        a_delayed_message_is_never_early,
        released_messages_come_again_at_once,
        extension_keeps_a_message_away,
        late_answers_are_stale_and_touch_nothing,
        buffered_messages_are_kept_beyond_their_lease,
        never_more_than_prefetch_is_out,
        fifo_keeps_order_per_key,
        fifo_messages_carry_key_and_id,
        declaring_twice_changes_nothing_and_a_difference_is_a_conflict,
        a_missing_queue_is_named,
        an_unreachable_endpoint_is_named_in_time,
        closing_during_a_long_poll_keeps_its_deadline,
        after_close_everything_is_closed,
        a_deleted_queue_ends_the_receiver,
        stopping_gives_back_what_is_buffered,
    ]);
}

async fn a_batch_of_any_size_arrives_and_acked_messages_never_come_back() -> Outcome {
    let pair = Pair::new("batch", QUICK, ConsumerOptions::default()).await?;
    for count in [1, 10, 11, 251] {
        deliver(&*pair.producer, (0..count).map(|i| Message::new(i.to_string())).collect()).await?;
        let got = collect(&*pair.consumer, count, SOON).await?;
        let bodies: HashSet<_> = got.iter().map(text).collect();
        assert_eq!(bodies.len(), count);
        let tokens: Vec<_> = got.iter().map(|r| r.token).collect();
        assert!(pair.consumer.ack(&tokens).stale.is_empty());
        assert_eq!(pair.consumer.ack(&tokens).stale.len(), count, "answered twice");
        pair.consumer.flush().await?;
    }
    // Neither waiting nor leased: gone.
    let stats = pair.broker.stats(&Source::new(pair.address.clone())).await?;
    assert_eq!((stats.ready, stats.in_flight), (Some(0), Some(0)));
    pair.end().await
}

async fn a_refused_entry_fails_alone() -> Outcome {
    let pair = Pair::new("partial", QUICK, ConsumerOptions::default()).await?;
    let mut batch: Vec<_> = (0..25).map(|i| Message::new(i.to_string())).collect();
    batch[13] = Message::new("13").to("topic:nowhere".parse()?);
    batch[17] = Message::new("17").delay(Duration::from_secs(901));
    batch[21] = Message::new("21").to(fresh("missing"));
    let outcomes = send(&*pair.producer, batch).await;
    for (index, outcome) in outcomes.iter().enumerate() {
        let kind = outcome.as_ref().err().map(queue_core::Error::kind);
        let expected = match index {
            13 => Some(ErrorKind::Unsupported),
            17 => Some(ErrorKind::Unsupported),
            21 => Some(ErrorKind::NotFound),
            _ => None,
        };
        assert_eq!(kind, expected, "message {index}");
    }
    collect(&*pair.consumer, 22, SOON).await?;
    pair.end().await
}

async fn bodies_of_any_content_survive() -> Outcome {
    let pair = Pair::new("bodies", QUICK, ConsumerOptions::default()).await?;
    let bodies: Vec<Vec<u8>> = vec![
        vec![],
        vec![0],
        b"-".to_vec(),
        b" \t\r\n".to_vec(),
        (0..=255).collect(),
        b"a\x0bb".to_vec(),
        "\u{fffe}".into(),
        "\u{10ffff} \u{85} ü".into(),
        br#"{"anyqueue-encoding":"base64"}"#.to_vec(),
        vec![0xff; 100_000],
        vec![b'x'; 262_144],
    ];
    let batch = bodies.iter().enumerate().map(|(i, b)| Message::new(b.clone()).id(i.to_string())).collect::<Vec<_>>();
    // The largest has no room for an id.
    let batch = batch.into_iter().enumerate().map(|(i, m)| if i == 10 { Message::new(m.into_payload()) } else { m });
    deliver(&*pair.producer, batch.collect()).await?;
    for received in collect(&*pair.consumer, bodies.len(), SOON).await? {
        let message = received.message.map_err(|u| u.error)?;
        let index: usize = message.get_id().unwrap_or("10").parse()?;
        assert!(message.payload() == &bodies[index], "body {index}");
        assert!(message.sent_at().is_some());
    }
    let tombstone = Message::tombstone("k").header("why", "gone");
    deliver(&*pair.producer, vec![tombstone]).await?;
    let got = collect(&*pair.consumer, 1, SOON).await?.remove(0).message.map_err(|u| u.error)?;
    assert!(got.is_tombstone() && got.get_key().is_some_and(|k| k == "k"));
    pair.end().await
}

async fn headers_of_any_number_and_type_survive() -> Outcome {
    let pair = Pair::new("headers", QUICK, ConsumerOptions::default()).await?;
    let mut sent = Vec::new();
    for count in [0_usize, 1, 9, 10, 11, 50] {
        for payload in [&b"text"[..], &b"\xff\x00"[..]] {
            let mut message = Message::new(payload);
            for i in (0..count).rev() {
                message = message.header(format!("h{i:02}"), i64::try_from(i)?);
            }
            sent.push(message);
        }
    }
    let odd = Message::new("odd")
        .header("bytes", vec![0_u8, 255])
        .header("empty", "")
        .header("text", "ünï")
        .header("int", i64::MIN)
        .header("float", 1.5)
        .header("whole", 1.0)
        .header("huge", 1e300)
        .header("yes", true)
        .header("at", UNIX_EPOCH + Duration::new(5, 7))
        .header("null", HeaderValue::Null)
        .header("list", vec![HeaderValue::from(1), "x".into()])
        .header("twice", "a")
        .header("twice", "b")
        .header("ä ö", "name")
        .header("aws.x", "prefix")
        .header(".dot", "dot")
        .header("a..b", "dots")
        .header("control", "a\u{1}b")
        .header("Case", "a")
        .header("case", "b");
    sent.push(odd);
    sent.push(
        Message::new("fields")
            .id("i d")
            .key(vec![0, 1])
            .content_type("text/plain")
            .correlation_id("c")
            .reply_to("replies")
            .subject("s")
            .timestamp(UNIX_EPOCH + Duration::new(1, 2)),
    );
    let numbered: Vec<_> =
        sent.iter().enumerate().map(|(i, m)| m.clone().header("zz-number", i64::try_from(i).unwrap_or(0))).collect();
    deliver(&*pair.producer, numbered.clone()).await?;
    for received in collect(&*pair.consumer, numbered.len(), SOON).await? {
        let message = received.message.map_err(|u| u.error)?;
        let index = message.headers().get("zz-number").and_then(HeaderValue::as_int).ok_or("no number")?;
        let sent = &numbered[usize::try_from(index)?];
        assert_eq!(message.headers(), sent.headers());
        assert_eq!(message.payload(), sent.payload());
        assert_eq!((message.get_id(), message.get_key()), (sent.get_id(), sent.get_key()));
        assert_eq!(
            (message.get_content_type(), message.get_correlation_id()),
            (sent.get_content_type(), sent.get_correlation_id())
        );
        assert_eq!((message.get_reply_to(), message.get_subject()), (sent.get_reply_to(), sent.get_subject()));
        assert_eq!(message.get_timestamp(), sent.get_timestamp());
    }
    pair.end().await
}

async fn a_plain_client_reads_what_is_sent_and_the_other_way_round() -> Outcome {
    let pair = Pair::new("plain", QUICK, ConsumerOptions::default()).await?;
    let client = pair.broker.native().downcast_ref::<aws_sdk_sqs::Client>().ok_or("no client")?.clone();
    let url = client.get_queue_url().queue_name(pair.address.name()).send().await?.queue_url.ok_or("no URL")?;
    pair.consumer.set_paused(true);

    deliver(&*pair.producer, vec![Message::new("hello").header("tenant", "acme").header("times", 3)]).await?;
    let got = loop {
        let output =
            client.receive_message().queue_url(&url).message_attribute_names("All").wait_time_seconds(1).send();
        if let Some(message) = output.await?.messages.unwrap_or_default().pop() {
            break message;
        }
    };
    assert_eq!(got.body(), Some("hello"));
    let attributes = got.message_attributes().ok_or("no attributes")?;
    assert_eq!(attributes.len(), 2, "nothing of our own: {attributes:?}");
    assert_eq!((attributes["tenant"].data_type(), attributes["tenant"].string_value()), ("String", Some("acme")));
    assert_eq!((attributes["times"].data_type(), attributes["times"].string_value()), ("Number", Some("3")));
    client.delete_message().queue_url(&url).receipt_handle(got.receipt_handle().unwrap_or_default()).send().await?;

    let label =
        aws_sdk_sqs::types::MessageAttributeValue::builder().data_type("String.label").string_value("x").build()?;
    let marked =
        aws_sdk_sqs::types::MessageAttributeValue::builder().data_type("String").string_value("base64").build()?;
    let good = client.send_message().queue_url(&url).message_body("plain").message_attributes("label", label);
    good.send().await?;
    let bad = client.send_message().queue_url(&url).message_body("!!").message_attributes("anyqueue-encoding", marked);
    bad.send().await?;
    pair.consumer.set_paused(false);
    let (mut plain, mut undecodable) = (0, 0);
    for received in collect(&*pair.consumer, 2, SOON).await? {
        match received.message {
            Ok(message) => {
                assert_eq!((message.text(), message.headers().len()), (Some("plain"), 1));
                assert!(message.native_headers().get("MessageId").is_some());
                plain += 1;
            }
            Err(raw) => {
                assert_eq!((raw.raw.as_ref(), raw.error.kind()), (&b"!!"[..], ErrorKind::Codec));
                undecodable += 1;
            }
        }
        pair.consumer.ack(&[received.token]);
    }
    assert_eq!((plain, undecodable), (1, 1));
    pair.end().await
}

async fn what_is_too_large_fails_alone_before_the_network() -> Outcome {
    let pair = Pair::new("large", QUICK, ConsumerOptions::default()).await?;
    let limit = pair.producer.capabilities().max_message_bytes;
    let batch = vec![
        Message::new(vec![b'x'; limit]),
        Message::new(vec![b'x'; limit + 1]),
        Message::new(vec![0xff; limit]),
        Message::new("small"),
    ];
    let outcomes = send(&*pair.producer, batch).await;
    assert!(outcomes[0].is_ok() && outcomes[3].is_ok(), "{outcomes:?}");
    for outcome in &outcomes[1..3] {
        let error = outcome.as_ref().err().ok_or("it was accepted")?;
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Fate::NotSent));
        assert_eq!(error.context("limit"), Some(limit.to_string().as_str()));
    }
    pair.end().await
}

async fn a_retry_comes_not_before_its_delay_and_counts() -> Outcome {
    let pair = Pair::new("retry", QUICK, ConsumerOptions::default()).await?;
    deliver(&*pair.producer, vec![Message::new("again")]).await?;
    let got = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    assert_eq!(got.attempt, 1);
    let began = Instant::now();
    let settled = pair.consumer.settle(vec![Answer::Retry(got.token, Duration::from_millis(1500))]);
    assert!(settled.stale.is_empty() && !pair.consumer.holds(got.token));
    assert!(settled.pending.ok_or("nothing to wait for")?.await.is_empty());
    deliver(&*pair.producer, vec![Message::new("meanwhile")]).await?;
    let other = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    assert_eq!(text(&other), "meanwhile");
    let got = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    let after = began.elapsed();
    assert!(after >= Duration::from_millis(1500) && after < Duration::from_secs(6), "{after:?}");
    assert_eq!((text(&got).as_str(), got.attempt), ("again", 2));

    let too_long = Answer::Retry(got.token, Duration::from_secs(13 * 3600));
    let refused = pair.consumer.settle(vec![too_long]).pending.ok_or("nothing to wait for")?.await;
    assert_eq!(refused.first().map(|(i, e)| (*i, e.kind())), Some((0, ErrorKind::InvalidInput)));
    assert!(pair.consumer.holds(got.token));
    pair.end().await
}

async fn a_delayed_message_is_never_early() -> Outcome {
    let pair = Pair::new("delay", QUICK, ConsumerOptions::default()).await?;
    let began = Instant::now();
    deliver(&*pair.producer, vec![Message::new("later").delay(Duration::from_millis(1200)), Message::new("now")])
        .await?;
    assert_eq!(text(&collect(&*pair.consumer, 1, SOON).await?[0]), "now");
    assert_eq!(text(&collect(&*pair.consumer, 1, SOON).await?[0]), "later");
    let after = began.elapsed();
    assert!(after >= Duration::from_millis(1200) && after < Duration::from_secs(6), "{after:?}");
    pair.end().await
}

async fn released_messages_come_again_at_once() -> Outcome {
    let pair = Pair::new("release", QUICK, ConsumerOptions::default()).await?;
    deliver(&*pair.producer, (0..30).map(|i| Message::new(i.to_string())).collect()).await?;
    let got = collect(&*pair.consumer, 30, SOON).await?;
    let settled = pair.consumer.settle(got.iter().map(|r| Answer::Release(r.token)).collect());
    assert!(settled.stale.is_empty());
    pair.consumer.flush().await?;
    let again = collect(&*pair.consumer, 30, SOON).await?;
    assert!(again.iter().all(|r| r.attempt == 2));
    pair.end().await
}

async fn extension_keeps_a_message_away() -> Outcome {
    let mut options = ConsumerOptions::default();
    options.lease = Duration::from_secs(1);
    let pair = Pair::new("extend", QUICK, options).await?;
    deliver(&*pair.producer, vec![Message::new("mine")]).await?;
    let got = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    let settled = pair.consumer.settle(vec![Answer::Extend(got.token, Duration::from_secs(4))]);
    assert!(settled.pending.ok_or("nothing to wait for")?.await.is_empty());
    silence(&*pair.consumer, Duration::from_secs(2)).await?;
    assert!(pair.consumer.holds(got.token));
    assert!(pair.consumer.ack(&[got.token]).stale.is_empty());
    pair.consumer.flush().await?;
    silence(&*pair.consumer, Duration::from_secs(3)).await?;
    pair.end().await
}

async fn late_answers_are_stale_and_touch_nothing() -> Outcome {
    let mut options = ConsumerOptions::default();
    options.lease = Duration::from_secs(1);
    let pair = Pair::new("late", QUICK, options).await?;
    deliver(&*pair.producer, vec![Message::new("slow")]).await?;
    let first = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    let lease = first.lease.ok_or("no lease")?;
    assert!(lease <= Instant::now() + Duration::from_secs(1));
    tokio::time::sleep_until(lease).await;
    assert!(!pair.consumer.holds(first.token));
    assert_eq!(pair.consumer.ack(&[first.token]).stale, [0]);
    assert_eq!(pair.consumer.settle(vec![Answer::Release(first.token)]).stale, [0]);
    let second = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    assert_eq!(second.attempt, 2);
    assert_eq!(pair.consumer.ack(&[first.token, second.token]).stale, [0]);
    pair.consumer.flush().await?;
    pair.end().await
}

async fn buffered_messages_are_kept_beyond_their_lease() -> Outcome {
    let mut options = ConsumerOptions::default();
    options.lease = Duration::from_secs(2);
    let pair = Pair::new("buffer", QUICK, options).await?;
    deliver(&*pair.producer, (0..20).map(|i| Message::new(i.to_string())).collect()).await?;
    let first = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    pair.consumer.ack(&[first.token]);
    // More than two leases later nothing of the rest has come back to the queue.
    silence_of_the_queue(&pair, Duration::from_secs(5)).await?;
    let got = collect(&*pair.consumer, 19, SOON).await?;
    assert!(got.iter().all(|r| r.attempt == 1), "{:?}", got.iter().map(|r| r.attempt).collect::<Vec<_>>());
    pair.end().await
}

/// Looks at the queue for a while: nothing of it is ready.
async fn silence_of_the_queue(pair: &Pair, time: Duration) -> Outcome {
    let source = Source::new(pair.address.clone());
    let until = Instant::now() + time;
    let mut all_out = false;
    while Instant::now() < until {
        let ready = pair.broker.stats(&source).await?.ready;
        all_out |= ready == Some(0);
        assert!(!all_out || ready == Some(0), "{ready:?} came back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(all_out);
    Ok(())
}

async fn never_more_than_prefetch_is_out() -> Outcome {
    let mut options = ConsumerOptions::default();
    options.prefetch = 7;
    let pair = Pair::new("prefetch", QUICK, options).await?;
    deliver(&*pair.producer, (0..40).map(|i| Message::new(i.to_string())).collect()).await?;
    let source = Source::new(pair.address.clone());
    let mut held = collect(&*pair.consumer, 7, SOON).await?;
    silence(&*pair.consumer, Duration::from_millis(1500)).await?;
    assert_eq!(pair.broker.stats(&source).await?.in_flight, Some(7));
    let mut seen = 7;
    while seen < 40 {
        let half = held.split_off(held.len() / 2);
        let tokens: Vec<_> = half.iter().map(|r| r.token).collect();
        assert!(pair.consumer.ack(&tokens).stale.is_empty());
        let more = receive(&*pair.consumer, 40, SOON).await?;
        seen += more.len();
        held.extend(more);
        assert!(held.len() <= 7);
    }
    pair.end().await
}

async fn fifo_keeps_order_per_key() -> Outcome {
    let mut options = ConsumerOptions::default();
    options.ordering = Ordering::PerKey;
    let pair = Pair::new("order.fifo", QUICK, options).await?;
    assert_eq!(pair.producer.capabilities().ordering, Ordering::PerKey);
    assert!(!pair.producer.capabilities().delayed_send);
    let batch = (0..60).map(|i| Message::new((i / 3).to_string()).key(format!("key {}", i % 3))).collect();
    deliver(&*pair.producer, batch).await?;
    let mut next: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for _ in 0..60 {
        let got = collect(&*pair.consumer, 1, SOON).await?.remove(0);
        let message = got.message.as_ref().map_err(|u| u.error.clone())?;
        let key = message.get_key().ok_or("no key")?.to_vec();
        let expected = next.entry(key).or_default();
        assert_eq!(text(&got), expected.to_string());
        *expected += 1;
        assert!(got.position.offset.is_some());
        pair.consumer.ack(&[got.token]);
    }
    assert_eq!(next.len(), 3);
    pair.end().await
}

async fn fifo_messages_carry_key_and_id() -> Outcome {
    let pair = Pair::new("id.fifo", QUICK, ConsumerOptions::default()).await?;
    let twice = Message::new("once").id("same").key("k");
    deliver(&*pair.producer, vec![twice.clone(), twice, Message::new("other").key(vec![0, 255])]).await?;
    deliver(&*pair.producer, vec![Message::new("keyless")]).await?;
    let got = collect(&*pair.consumer, 3, SOON).await?;
    silence(&*pair.consumer, Duration::from_millis(1500)).await?;
    for received in &got {
        let message = received.message.as_ref().map_err(|u| u.error.clone())?;
        match text(received).as_str() {
            "once" => assert_eq!(
                (message.get_id(), message.get_key().map(|k| k.to_vec())),
                (Some("same"), Some(b"k".to_vec()))
            ),
            "other" => assert_eq!(message.get_key().map(|k| k.to_vec()), Some(vec![0, 255])),
            _ => assert_eq!(message.get_key(), None),
        }
    }
    let delayed = send(&*pair.producer, vec![Message::new("y").delay(Duration::from_secs(1))]).await.remove(0);
    assert_eq!(delayed.map_err(|e| e.kind()), Err(ErrorKind::Unsupported));
    pair.end().await
}

async fn declaring_twice_changes_nothing_and_a_difference_is_a_conflict() -> Outcome {
    let broker = connect(QUICK).await?;
    let mut entry = Entry::new(fresh("declare"));
    let missing = broker.verify(&Topology::from_iter([entry.clone()])).await;
    assert_eq!(missing.map_err(|e| e.kind()), Err(ErrorKind::NotFound));
    entry.dead_letter = Some(entry.address.dead_letter());
    entry.max_deliveries = Some(3);
    entry.native.insert("VisibilityTimeout".to_owned(), "17".to_owned());
    let topology = Topology::from_iter([entry.clone()]);
    broker.declare(&topology).await?;
    broker.declare(&topology).await?;
    broker.verify(&topology).await?;

    let client = broker.native().downcast_ref::<aws_sdk_sqs::Client>().ok_or("no client")?;
    let url = client.get_queue_url().queue_name(entry.address.name()).send().await?.queue_url.ok_or("no URL")?;
    let policy = aws_sdk_sqs::types::QueueAttributeName::RedrivePolicy;
    let found = client.get_queue_attributes().queue_url(url).attribute_names(policy.clone()).send().await?;
    let policy = found.attributes.unwrap_or_default().remove(&policy).ok_or("no redrive policy")?;
    assert!(policy.contains("13") && policy.contains("-dlq"), "{policy}");

    entry.native.insert("VisibilityTimeout".to_owned(), "18".to_owned());
    let differs = Topology::from_iter([entry.clone()]);
    for outcome in [broker.declare(&differs).await, broker.verify(&differs).await] {
        let error = outcome.err().ok_or("it was taken")?;
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert_eq!((error.context("found"), error.context("asked")), (Some("17"), Some("18")));
    }
    for address in [entry.address.dead_letter(), entry.address.clone()] {
        broker.delete(&address).await?;
        broker.delete(&address).await?;
    }
    Ok(())
}

async fn a_missing_queue_is_named() -> Outcome {
    let broker = connect(QUICK).await?;
    let address = fresh("missing");
    let producer = broker.producer(&address, &ProducerOptions::default()).await.err().ok_or("it opened")?;
    let consumer = broker.consumer(&Source::new(address.clone()), &ConsumerOptions::default()).await.err();
    for error in [producer, consumer.ok_or("it opened")?] {
        assert_eq!((error.kind(), error.context("address")), (ErrorKind::NotFound, Some(address.name())));
    }
    let topic = broker.producer(&"topic:orders".parse()?, &ProducerOptions::default()).await.err();
    assert_eq!(topic.map(|e| e.kind()), Some(ErrorKind::Unsupported));
    Ok(())
}

async fn an_unreachable_endpoint_is_named_in_time() -> Outcome {
    let began = Instant::now();
    let url = "sqs://127.0.0.1:1?region=us-east-1&access_key=test&secret_key=hunter2";
    let error = connect_to(url, Events::new()).await.err().ok_or("it connected")?;
    assert_eq!((error.kind(), error.context("host")), (ErrorKind::Connection, Some("127.0.0.1:1")));
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    Ok(())
}

async fn closing_during_a_long_poll_keeps_its_deadline() -> Outcome {
    let pair = Pair::new("close", "&wait_time=20s", ConsumerOptions::default()).await?;
    silence(&*pair.consumer, Duration::from_millis(300)).await?;
    let began = Instant::now();
    let report = pair.consumer.close(began + Duration::from_secs(2)).await;
    assert!(report.is_clean() && began.elapsed() < Duration::from_secs(3), "{report:?}");
    // What the poll under way brings is given back.
    deliver(&*pair.producer, vec![Message::new("for the next")]).await?;
    let next = pair.broker.consumer(&Source::new(pair.address.clone()), &ConsumerOptions::default()).await?;
    assert_eq!(text(&collect(&*next, 1, SOON).await?[0]), "for the next");
    let began = Instant::now();
    next.close(began + Duration::from_secs(1)).await;
    pair.broker.close(began + Duration::from_secs(2)).await;
    assert!(began.elapsed() < Duration::from_secs(3));
    Ok(())
}

async fn after_close_everything_is_closed() -> Outcome {
    let pair = Pair::new("closed", QUICK, ConsumerOptions::default()).await?;
    deliver(&*pair.producer, vec![Message::new("x")]).await?;
    let got = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    let deadline = Instant::now() + Duration::from_secs(5);
    assert_eq!(pair.consumer.close(deadline).await.unanswered, 1);
    assert!(pair.consumer.close(deadline).await.is_clean());
    assert_eq!(pair.consumer.ack(&[got.token]).stale, [0]);
    assert!(receive(&*pair.consumer, 1, SOON).await.is_err_and(|e| e.to_string().contains("closed")));
    assert!(pair.producer.close(deadline).await.is_clean());
    let late = send(&*pair.producer, vec![Message::new("y")]).await.remove(0);
    assert_eq!(late.map_err(|e| (e.kind(), e.outcome())), Err((ErrorKind::Closed, Fate::NotSent)));
    pair.broker.delete(&pair.address).await?;
    pair.broker.close(deadline).await;
    let reopened = pair.broker.producer(&pair.address, &ProducerOptions::default()).await;
    assert_eq!(reopened.err().map(|e| e.kind()), Some(ErrorKind::Closed));
    Ok(())
}

async fn a_deleted_queue_ends_the_receiver() -> Outcome {
    let pair = Pair::new("deleted", QUICK, ConsumerOptions::default()).await?;
    pair.broker.delete(&pair.address).await?;
    let error = receive(&*pair.consumer, 1, SOON).await.err().ok_or("something arrived")?;
    let kind = error.downcast_ref::<queue_core::Error>().map(queue_core::Error::kind);
    assert_eq!(kind, Some(ErrorKind::NotFound), "{error}");
    let late = send(&*pair.producer, vec![Message::new("x")]).await.remove(0);
    assert_eq!(late.map_err(|e| (e.kind(), e.outcome())), Err((ErrorKind::NotFound, Fate::NotSent)));
    Ok(())
}

async fn stopping_gives_back_what_is_buffered() -> Outcome {
    let pair = Pair::new("stop", QUICK, ConsumerOptions::default()).await?;
    deliver(&*pair.producer, (0..20).map(|i| Message::new(i.to_string())).collect()).await?;
    let got = collect(&*pair.consumer, 5, SOON).await?;
    pair.consumer.stop().await;
    assert!(receive(&*pair.consumer, 1, SOON).await.is_err_and(|e| e.to_string().contains("closed")));
    let tokens: Vec<_> = got.iter().map(|r| r.token).collect();
    assert!(pair.consumer.ack(&tokens).stale.is_empty());
    pair.consumer.flush().await?;
    let next = pair.broker.consumer(&Source::new(pair.address.clone()), &ConsumerOptions::default()).await?;
    collect(&*next, 15, SOON).await?;
    next.close(Instant::now() + SOON).await;
    pair.end().await
}
