//! What becomes of messages on a real broker, at the level of the contract.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use queue_core::{ConsumerOptions, ErrorKind, HeaderValue, Message, Ordering, Outcome as Fate};
use tokio::time::Instant;

mod support;
use support::*;

const SOON: Duration = Duration::from_secs(10);

fn main() {
    support::main(cases![
        bodies_of_any_content_survive,
        headers_of_any_number_and_type_survive,
        a_plain_client_reads_what_is_sent_and_the_other_way_round,
        what_is_too_large_fails_alone_before_the_network,
        a_refused_entry_fails_alone,
        a_delayed_message_is_never_early,
        a_delay_of_several_hops_is_never_early,
        fifo_keeps_order_per_key,
        fifo_messages_carry_key_and_id,
    ]);
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

async fn a_delay_of_several_hops_is_never_early() -> Outcome {
    let pair = Pair::new("hops", &format!("{QUICK}&delay_hops=1s"), ConsumerOptions::default()).await?;
    let began = Instant::now();
    let delay = Duration::from_millis(3200);
    deliver(&*pair.producer, vec![Message::new("later").header("n", 7).delay(delay), Message::new("now")]).await?;
    assert_eq!(text(&collect(&*pair.consumer, 1, SOON).await?[0]), "now");
    let later = collect(&*pair.consumer, 1, SOON).await?.remove(0);
    assert!(began.elapsed() >= delay, "{:?}", began.elapsed());
    assert_eq!((text(&later).as_str(), later.attempt), ("later", 1));
    let headers = later.message.map_err(|u| u.error)?.headers().clone();
    assert_eq!(headers.iter().collect::<Vec<_>>(), [("n", &HeaderValue::Int(7))]);
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
