//! What may be sent, and how it is checked.

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry};

use super::*;

const MIB: usize = 1 << 20;

fn entry(id: &str, body: impl Into<String>) -> SendMessageBatchRequestEntry {
    SendMessageBatchRequestEntry::builder().id(id).message_body(body).build().expect("it is complete")
}

fn attribute(data_type: &str, value: &str) -> MessageAttributeValue {
    MessageAttributeValue::builder().data_type(data_type).string_value(value).build().expect("it is complete")
}

async fn send_batch(queue: &Queue, entries: Vec<SendMessageBatchRequestEntry>) -> Result<Vec<String>, String> {
    let outcome = queue.sqs.send_message_batch().queue_url(&queue.url).set_entries(Some(entries)).send().await;
    let output = outcome.map_err(|error| code(&error))?;
    Ok(output.failed.iter().map(|entry| format!("{} {}", entry.id, entry.code)).collect())
}

async fn send_with(queue: &Queue, name: &str, value: MessageAttributeValue) -> Result<(), String> {
    let request = queue.sqs.send_message().queue_url(&queue.url).message_body("x").message_attributes(name, value);
    request.send().await.map(drop).map_err(|error| code(&error))
}

#[tokio::test]
async fn batches_are_of_one_to_ten_distinct_entries() -> Outcome {
    let queue = Queue::new("batches").await?;
    let numbered = |count: usize| (0..count).map(|i| entry(&i.to_string(), "x")).collect::<Vec<_>>();
    assert_eq!(send_batch(&queue, Vec::new()).await, Err("EmptyBatchRequest".to_owned()));
    assert_eq!(send_batch(&queue, numbered(11)).await, Err("TooManyEntriesInBatchRequest".to_owned()));
    let twice = vec![entry("a", "x"), entry("a", "y")];
    assert_eq!(send_batch(&queue, twice).await, Err("BatchEntryIdsNotDistinct".to_owned()));
    assert_eq!(send_batch(&queue, vec![entry("a b", "x")]).await, Err("InvalidBatchEntryId".to_owned()));
    assert!(queue.receive(30).await?.is_empty(), "something was taken of a batch that was refused");
    assert_eq!(send_batch(&queue, numbered(10)).await, Ok(Vec::new()));
    let empty = queue.sqs.delete_message_batch().queue_url(&queue.url).set_entries(Some(Vec::new())).send().await;
    assert_eq!(empty.map_err(|error| code(&error)).err().as_deref(), Some("EmptyBatchRequest"));
    let request = queue.sqs.change_message_visibility_batch().queue_url(&queue.url);
    let empty = request.set_entries(Some(Vec::new())).send().await;
    assert_eq!(empty.map_err(|error| code(&error)).err().as_deref(), Some("EmptyBatchRequest"));
    Ok(())
}

#[tokio::test]
async fn a_message_and_a_batch_are_a_mebibyte_at_most_attributes_included() -> Outcome {
    let queue = Queue::new("large").await?;
    assert!(queue.send(&"x".repeat(MIB), None).await.is_ok());
    assert!(queue.send(&"x".repeat(MIB + 1), None).await.is_err());
    let half = |id: &str, more: usize| entry(id, "x".repeat(MIB / 2 + more));
    assert_eq!(send_batch(&queue, vec![half("a", 0), half("b", 0)]).await, Ok(Vec::new()));
    assert_eq!(send_batch(&queue, vec![half("a", 0), half("b", 1)]).await, Err("BatchRequestTooLong".to_owned()));
    // "name", "String" and "value" are 15 bytes.
    for (less, fits) in [(15, true), (14, false)] {
        let request = queue.sqs.send_message().queue_url(&queue.url).message_body("x".repeat(MIB - less));
        let outcome = request.message_attributes("name", attribute("String", "value")).send().await;
        assert_eq!(outcome.is_ok(), fits, "{less}");
    }
    let small = create(&queue.sqs, "small", &[("MaximumMessageSize", "1024")]).await?;
    let outcome = queue.sqs.send_message().queue_url(small).message_body("x".repeat(1025)).send().await;
    assert_eq!(outcome.map_err(|error| code(&error)).err().as_deref(), Some("InvalidParameterValue"));
    Ok(())
}

#[tokio::test]
async fn what_xml_cannot_say_fails_alone() -> Outcome {
    let queue = Queue::new("characters").await?;
    let batch = vec![entry("0", "fine"), entry("1", "bell \u{7}"), entry("2", "\u{fffe}"), entry("3", "tab\t\u{fffd}")];
    let failed = send_batch(&queue, batch).await;
    assert_eq!(failed, Ok(vec!["1 InvalidMessageContents".to_owned(), "2 InvalidMessageContents".to_owned()]));
    assert_eq!(queue.bodies(30).await?, ["fine", "tab\t\u{fffd}"]);
    let empty = queue.sqs.send_message().queue_url(&queue.url).message_body("").send().await;
    assert_eq!(empty.map_err(|error| code(&error)).err().as_deref(), Some("MissingParameter"));
    Ok(())
}

#[tokio::test]
async fn attributes_have_names_types_and_values_and_are_ten() -> Outcome {
    let queue = Queue::new("attributes").await?;
    for name in ["AWS.x", "aws.x", "Amazon.x", "aMaZoN.x", ".x", "x.", "a..b", "a b", "ä", &"n".repeat(257)] {
        let refused = send_with(&queue, name, attribute("String", "v")).await;
        assert_eq!(refused, Err("InvalidParameterValue".to_owned()), "{name}");
    }
    let values = [("Boolean", "true"), ("String", ""), ("Number", "seven"), ("String", "\u{1}")];
    for (data_type, value) in values {
        let refused = send_with(&queue, "n", attribute(data_type, value)).await;
        assert_eq!(refused, Err("InvalidParameterValue".to_owned()), "{data_type} {value}");
    }
    for (data_type, value) in [("String.label", "v"), ("Number", "-1.5"), ("Number.int", "7")] {
        assert_eq!(send_with(&queue, "awsome_.-x", attribute(data_type, value)).await, Ok(()), "{data_type}");
    }
    for (count, fits) in [(10, true), (11, false)] {
        let mut request = queue.sqs.send_message().queue_url(&queue.url).message_body("x");
        for index in 0..count {
            request = request.message_attributes(format!("n{index}"), attribute("String", "v"));
        }
        assert_eq!(request.send().await.is_ok(), fits, "{count}");
    }
    Ok(())
}

#[tokio::test]
async fn a_message_is_delayed_by_fifteen_minutes_at_most() -> Outcome {
    let queue = Queue::new("delays").await?;
    let send = |delay| queue.sqs.send_message().queue_url(&queue.url).message_body("later").delay_seconds(delay).send();
    for delay in [-1, 901] {
        assert_eq!(send(delay).await.map_err(|e| code(&e)).err().as_deref(), Some("InvalidParameterValue"));
    }
    send(900).await?;
    queue.endpoint.pass(seconds(870));
    assert!(queue.receive(30).await?.is_empty());
    queue.endpoint.pass(seconds(30));
    assert_eq!(queue.bodies(30).await?, ["later"]);
    let slow = create(&queue.sqs, "slow", &[("DelaySeconds", "10")]).await?;
    queue.sqs.send_message().queue_url(&slow).message_body("as the queue says").send().await?;
    assert!(receive(&queue.sqs, &slow, 30).await?.is_empty());
    queue.endpoint.pass(seconds(10));
    assert_eq!(receive(&queue.sqs, &slow, 30).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_standard_queue_takes_groups_and_no_deduplication_ids() -> Outcome {
    let queue = Queue::new("groups").await?;
    queue.send("of a tenant", Some("tenant")).await?;
    let received = queue.receive(30).await?;
    assert_eq!(received.first().and_then(|m| system(m, MessageSystemAttributeName::MessageGroupId)), Some("tenant"));
    let request = queue.sqs.send_message().queue_url(&queue.url).message_body("x").message_deduplication_id("x");
    let refused = request.send().await.map_err(|error| code(&error)).err();
    assert_eq!(refused.as_deref(), Some("InvalidParameterValue"));
    Ok(())
}

/// What Amazon answered to these messages, as the tests of several emulators have it.
#[tokio::test]
async fn digests_are_those_that_clients_compute() -> Outcome {
    let queue = Queue::new("digests").await?;
    for (data_type, digest) in
        [("Number", "235c5c510d26fb653d073faed50ae77c"), ("Number.java.lang.Long", "2e2e4876d8e0bd6b8c2c8f556831c349")]
    {
        let request = queue.sqs.send_message().queue_url(&queue.url).message_body("derp");
        let sent = request.message_attributes("timestamp", attribute(data_type, "1493147359900")).send().await?;
        assert_eq!(sent.md5_of_message_body(), Some("58fd9edd83341c29f1aebba81c31e257"));
        assert_eq!(sent.md5_of_message_attributes(), Some(digest));
        let received = queue.receive(30).await?.remove(0);
        assert_eq!(received.md5_of_body(), sent.md5_of_message_body());
        assert_eq!(received.md5_of_message_attributes(), Some(digest));
    }
    let binary = MessageAttributeValue::builder().data_type("Binary").binary_value(Blob::new([0, 255])).build()?;
    let request = queue.sqs.send_message().queue_url(&queue.url).message_body("x").message_attributes("b", binary);
    let sent = request.message_attributes("a", attribute("String", "v")).send().await?;
    assert_eq!(sent.md5_of_message_attributes(), Some("fe8b03484c2f0ef9e2f501c995fc6cc3"));
    let received = queue.receive(30).await?.remove(0);
    let value = received.message_attributes().and_then(|a| a.get("b")?.binary_value());
    assert_eq!(value.map(|blob| blob.as_ref().to_vec()), Some(vec![0, 255]));
    assert_eq!(received.md5_of_message_attributes(), sent.md5_of_message_attributes());
    Ok(())
}
