//! What is sent from here, as boto3 sees it, and as the program on the page about SQS reads it.

use std::time::{Duration, UNIX_EPOCH};

use queue_core::{Client, ConsumerOptions, HeaderValue, Message, Text};
use queue_sqs::DRIVER;
use serde_json::{Value, json};

use crate::python::{self, hex};
use crate::support::*;

const SOON: Duration = Duration::from_secs(30);

/// Sends to a fresh queue, and takes what boto3 sees, in the order of the bodies.
async fn seen(stem: &str, messages: Vec<Message>) -> Result<Vec<Value>, Failure> {
    let pair = Pair::new(stem, QUICK, ConsumerOptions::default()).await?;
    // Its polls would take the messages.
    pair.consumer.close(tokio::time::Instant::now() + SOON).await;
    let count = messages.len();
    deliver(&*pair.producer, messages).await?;
    let mut all = python::received(pair.address.name(), count).await;
    all.sort_by_key(|one| one["body"].as_str().unwrap_or_default().to_owned());
    pair.end().await?;
    Ok(all)
}

pub(crate) async fn bodies_reach_boto3_as_text_or_marked() -> Outcome {
    let bytes: Vec<u8> = (0..=255).collect();
    let text = "grüße \u{1f980}\t\n";
    let seen = seen("to-boto3", vec![Message::new(bytes.clone()), Message::new(""), Message::new(text)]).await?;
    // Sorted: the sign of an empty body, base64, text.
    let [empty, marked, plain] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((&plain["body"], &plain["attributes"]), (&json!(text), &json!({})));
    assert_eq!(plain["read"], json!({"payload": hex(text), "headers": [], "properties": {}}));
    assert_eq!(marked["attributes"], json!({"anyqueue-encoding": ["String", "base64"]}));
    assert!(marked["body"].as_str().is_some_and(|body| body.starts_with("AAECAwQF")), "{marked}");
    assert_eq!(marked["read"]["payload"], hex(bytes));
    assert_eq!((&empty["body"], &empty["read"]["payload"]), (&json!("-"), &json!("")));
    assert_eq!(empty["attributes"], json!({"anyqueue-encoding": ["String", "empty"]}));
    Ok(())
}

pub(crate) async fn headers_reach_boto3_with_their_types() -> Outcome {
    // In order of their names, and none twice: nothing to note.
    let plain = Message::new("a")
        .header("bytes", vec![0, 255])
        .header("float", -0.5)
        .header("int", i64::MIN)
        .header("text", "ünï");
    let typed = Message::new("b").header("at", UNIX_EPOCH + Duration::from_millis(1500)).header("yes", true);
    let seen = seen("typed", vec![plain, typed]).await?;
    let attributes = json!({
        "bytes": ["Binary", {"bytes": "00ff"}],
        "float": ["Number", "-0.5"],
        "int": ["Number", "-9223372036854775808"],
        "text": ["String", "ünï"],
    });
    assert_eq!(seen[0]["attributes"], attributes);
    let attributes = json!({
        "anyqueue-h": ["String", "0@1b"],
        "at": ["String", "1.500000000"],
        "yes": ["String", "true"],
    });
    assert_eq!(seen[1]["attributes"], attributes);
    assert_eq!(seen[1]["read"]["headers"], json!([["at", 1.5], ["yes", true]]));
    Ok(())
}

pub(crate) async fn more_than_ten_headers_reach_boto3_by_the_note() -> Outcome {
    let map: Vec<(Text, HeaderValue)> = vec![("a b".into(), 1.into()), ("c".into(), HeaderValue::Null)];
    let mut message = Message::new(vec![0xff]);
    for n in 0..12_i64 {
        message = message.header(format!("h{n:02}"), n);
    }
    let message = message
        .header("twice", "one; two")
        .header("twice", vec![0, 255])
        .header("map", map)
        .header("list", vec![HeaderValue::from(-0.5), true.into(), "100 %".into(), HeaderValue::List(vec![])])
        .header("aws.reserved", 1.0)
        .header("", "empty name")
        .header("at", UNIX_EPOCH + Duration::from_millis(1500));
    let seen = seen("packed", vec![message]).await?.remove(0);
    // Eight, the note and the mark.
    let names: Vec<_> = seen["attributes"].as_object().ok_or("no attributes")?.keys().cloned().collect();
    assert_eq!(names.len(), 10, "{names:?}");
    assert!(names[..2] == ["anyqueue-encoding", "anyqueue-h"], "{names:?}");
    let mut expected: Vec<Value> = (0..12).map(|n| json!([format!("h{n:02}"), n])).collect();
    expected.extend([
        json!(["twice", "one; two"]),
        json!(["twice", {"bytes": "00ff"}]),
        json!(["map", {"a b": 1, "c": null}]),
        json!(["list", [-0.5, true, "100 %", []]]),
        json!(["aws.reserved", 1.0]),
        json!(["", "empty name"]),
        json!(["at", 1.5]),
    ]);
    assert_eq!(seen["read"]["headers"], json!(expected));
    assert_eq!(seen["read"]["payload"], "ff");
    Ok(())
}

pub(crate) async fn properties_reach_boto3_by_the_note() -> Outcome {
    let message = Message::new("a")
        .id("i d")
        .key("user;7")
        .subject("eu.north")
        .content_type("text/plain")
        .correlation_id("c-1")
        .reply_to("replies")
        .timestamp(UNIX_EPOCH + Duration::new(5, 7));
    let seen = seen("properties", vec![message, Message::tombstone("k").id("z")]).await?;
    let properties = json!({
        "id": "i d",
        "key": {"bytes": hex("user;7")},
        "subject": "eu.north",
        "content_type": "text/plain",
        "correlation_id": "c-1",
        "reply_to": "replies",
        "timestamp": "5.000000007",
    });
    let (tombstone, plain) = (&seen[0], &seen[1]);
    assert_eq!((&plain["body"], &plain["read"]["properties"]), (&json!("a"), &properties));
    assert_eq!(tombstone["read"]["properties"], json!({"id": "z", "key": {"bytes": hex("k")}, "tombstone": ""}));
    Ok(())
}

pub(crate) async fn keys_and_ids_reach_boto3_as_groups_and_deduplication_ids() -> Outcome {
    let messages = vec![
        Message::new("a").key("user-7").id("id-1"),
        Message::new("b").key("user-7").id("id-1"),
        Message::new("c").id("id-3"),
        Message::new("d").key(vec![0, 1]).id("ä"),
    ];
    let pair = Pair::new("to-groups.fifo", QUICK, ConsumerOptions::default()).await?;
    pair.consumer.close(tokio::time::Instant::now() + SOON).await;
    deliver(&*pair.producer, messages).await?;
    let mut seen = python::received(pair.address.name(), 3).await;
    seen.sort_by_key(|one| one["body"].as_str().unwrap_or_default().to_owned());
    let ids: Vec<_> = seen.iter().map(|one| (&one["body"], &one["group"], &one["deduplication"])).collect();
    assert_eq!(ids[0], (&json!("a"), &json!("user-7"), &json!("id-1")), "the second is a repeat");
    assert_eq!(ids[1], (&json!("c"), &json!("anyqueue"), &json!("id-3")));
    assert!(ids[2].1.as_str().is_some_and(|group| group.starts_with("anyqueue-")), "{}", seen[2]);
    assert!(ids[2].2.as_str().is_some_and(|id| id.starts_with("anyqueue-")), "{}", seen[2]);
    assert_eq!(seen[2]["read"]["properties"], json!({"key": {"bytes": "0001"}, "id": "ä"}));
    // What fits needs no note.
    assert_eq!(seen[0]["attributes"], json!({}));
    pair.end().await
}

pub(crate) async fn a_delay_keeps_a_message_from_boto3() -> Outcome {
    let seen = seen("delayed", vec![Message::new("late").delay(Duration::from_millis(1100))]).await?;
    let at = |name: &str| seen[0][name].as_u64().unwrap_or_default();
    assert!(at("received") >= at("sent") + 2000, "whole seconds, rounded up: {}", seen[0]);
    Ok(())
}

pub(crate) async fn a_dead_letter_is_a_plain_message_for_boto3() -> Outcome {
    let client = Client::connect_with(&format!("{}{QUICK}", url()), &[DRIVER]).await?;
    let queue = fresh("dead");
    let mut receiver = client.receiver(&queue).await?;
    client.sender(&queue).await?.send(Message::new("hello").header("tenant", "acme")).await?;
    receiver.receive().await?.reject("not a number");
    let dead = python::received(queue.dead_letter().name(), 1).await.remove(0);
    assert_eq!(dead["body"], "hello");
    let attributes = &dead["attributes"];
    assert_eq!(attributes["tenant"], json!(["String", "acme"]));
    assert_eq!(attributes["anyqueue-reason"], json!(["String", "not a number"]));
    assert_eq!(attributes["anyqueue-origin"], json!(["String", queue.name()]));
    assert_eq!(attributes["anyqueue-attempts"], json!(["Number", "1"]));
    receiver.close(SOON).await;
    client.delete(&queue).await?;
    client.delete(queue.dead_letter()).await?;
    Ok(())
}
