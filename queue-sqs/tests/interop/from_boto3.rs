//! What boto3 sends, as it arrives here.

use std::collections::HashMap;
use std::time::Duration;

use queue_core::{Client, ConsumerOptions, HeaderValue, Headers, Message, Source};
use queue_sqs::DRIVER;

use crate::python;
use crate::support::*;

const SOON: Duration = Duration::from_secs(30);

/// What arrives of the messages of these names, in order.
async fn arrived(stem: &str, names: &[&str], count: usize) -> Result<Vec<(String, Message)>, Failure> {
    let pair = Pair::new(stem, QUICK, ConsumerOptions::default()).await?;
    let arguments: Vec<_> = std::iter::once(pair.address.name()).chain(names.iter().copied()).collect();
    let sent = python::run("send.py", &arguments).await;
    let mut by_id = HashMap::new();
    for line in &sent {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        by_id.entry(text("id")).or_insert_with(|| text("name"));
    }
    let mut messages = Vec::new();
    // Answered one by one: the next of a group comes behind the answer.
    for _ in 0..count {
        let one = collect(&*pair.consumer, 1, SOON).await?.remove(0);
        assert!(pair.consumer.ack(&[one.token]).stale.is_empty());
        let message = one.message.map_err(|undecodable| undecodable.error)?;
        let id = message.native_headers().get("MessageId").and_then(HeaderValue::as_str).unwrap_or_default();
        messages.push((by_id.get(id).ok_or("a message of nobody")?.clone(), message));
    }
    pair.consumer.flush().await?;
    let stats = pair.broker.stats(&Source::new(pair.address.clone())).await?;
    assert_eq!((stats.ready, stats.in_flight), (Some(0), Some(0)), "more than was expected");
    pair.end().await?;
    Ok(messages)
}

fn by_name(messages: Vec<(String, Message)>) -> HashMap<String, Message> {
    messages.into_iter().collect()
}

pub(crate) async fn bodies_arrive_as_boto3_sent_them() -> Outcome {
    let names = ["text", "base64", "empty", "unmarked base64", "a note that is none", "a note that is no text"];
    let arrived = by_name(arrived("bodies", &names, names.len()).await?);
    let bytes: Vec<u8> = (0..=255).collect();
    assert_eq!(arrived["text"].text(), Some("grüße \u{1f980}"));
    assert_eq!(arrived["base64"].payload(), &bytes);
    assert!(arrived["empty"].payload().is_empty() && !arrived["empty"].is_tombstone());
    // Only what is marked is read as anything else than itself.
    assert!(arrived["unmarked base64"].text().is_some_and(|text| text.starts_with("AAECAwQF")));
    assert!(arrived["text"].headers().is_empty() && arrived["base64"].headers().is_empty());
    for name in ["a note that is none", "a note that is no text"] {
        let expected: Headers = [("a", 1)].into_iter().collect();
        assert_eq!(arrived[name].headers(), &expected, "{name}");
    }
    Ok(())
}

pub(crate) async fn attributes_of_each_type_arrive_with_their_types() -> Outcome {
    let arrived = by_name(arrived("attributes", &["attributes", "labels", "ten"], 3).await?);
    // By name: the protocol keeps no order.
    let expected: Headers = [
        ("bytes", HeaderValue::from(vec![0, 0xff])),
        ("exponent", 1000.0.into()),
        ("float", (-0.5).into()),
        ("int", 7.into()),
        ("least", i64::MIN.into()),
        // Beyond 64 bits.
        ("long", 9_223_372_036_854_775_808.0.into()),
        ("text", "ünï".into()),
    ]
    .into_iter()
    .collect();
    assert_eq!(arrived["attributes"].headers(), &expected);
    let labels: Headers = [("bytes", HeaderValue::from(b"\x89PNG".to_vec())), ("int", 7.into()), ("text", "a".into())]
        .into_iter()
        .collect();
    assert_eq!(arrived["labels"].headers(), &labels);
    let ten: Headers = (0..10).map(|n: i64| (format!("h{n}"), HeaderValue::from(n))).collect();
    assert_eq!(arrived["ten"].headers(), &ten);
    Ok(())
}

pub(crate) async fn a_body_that_is_marked_as_base64_and_is_none_makes_a_dead_letter_of_itself() -> Outcome {
    let client = Client::connect_with(&format!("{}{QUICK}", url()), &[DRIVER]).await?;
    let queue = fresh("no-base64");
    let mut receiver = client.receiver(&queue).await?;
    python::run("send.py", &[queue.name(), "no base64", "text"]).await;
    // The receiver goes on.
    let next = receiver.receive().await?;
    assert_eq!(next.text(), Some("grüße \u{1f980}"));
    next.ack();
    let dead = python::received(queue.dead_letter().name(), 1).await.remove(0);
    assert_eq!(dead["body"], "not base64!");
    assert!(dead["attributes"].get("anyqueue-reason").is_some(), "{dead}");
    receiver.close(SOON).await;
    client.delete(&queue).await?;
    client.delete(queue.dead_letter()).await?;
    Ok(())
}

pub(crate) async fn groups_and_deduplication_ids_arrive_as_keys_and_ids() -> Outcome {
    // The second has the first's deduplication id: the broker takes it and throws it away.
    let arrived = arrived("groups.fifo", &["first", "first again", "second", "other group"], 3).await?;
    let mut seen: Vec<_> = arrived.iter().map(|(_, m)| (m.text(), m.get_key().cloned(), m.get_id())).collect();
    let order: Vec<_> = seen.iter().filter_map(|(text, ..)| *text).filter(|text| *text != "other group").collect();
    assert_eq!(order, ["first", "second"]);
    seen.sort_unstable_by_key(|(text, ..)| *text);
    let key = |key: &'static str| Some(bytes::Bytes::from(key));
    assert_eq!(
        seen,
        [
            (Some("first"), key("g;1"), Some("one")),
            (Some("other group"), key("other"), Some("three")),
            (Some("second"), key("g;1"), Some("two")),
        ]
    );
    assert!(arrived.iter().all(|(_, m)| m.native_headers().get("SequenceNumber").is_some()));
    Ok(())
}

pub(crate) async fn a_message_that_boto3_delays_arrives() -> Outcome {
    let arrived = arrived("boto3-delays", &["delayed"], 1).await?;
    assert_eq!(arrived[0].1.text(), Some("delayed"));
    Ok(())
}
