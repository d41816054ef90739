//! FIFO queues: groups, deduplication, receipts that expire.

use super::*;

#[tokio::test]
async fn a_group_is_in_order_and_waits_for_what_is_in_flight_of_it() -> Outcome {
    let queue = Queue::new("order.fifo").await?;
    for (body, group) in [("a1", "a"), ("b1", "b"), ("a2", "a"), ("a3", "a")] {
        queue.send(body, Some(group)).await?;
    }
    let first = queue.receive(30).await?;
    assert_eq!(bodies(&first), ["a1", "b1", "a2", "a3"]);
    queue.send("a4", Some("a")).await?;
    queue.send("c1", Some("c")).await?;
    assert_eq!(queue.bodies(30).await?, ["c1"], "a is blocked, c is not");
    assert_eq!(queue.change(&first[0], 0).await, Ok(()));
    assert!(queue.receive(30).await?.is_empty(), "a2 is still in flight");
    assert_eq!(queue.delete(&first[2]).await, Ok(()));
    assert_eq!(queue.change(&first[3], 0).await, Ok(()));
    assert_eq!(queue.bodies(30).await?, ["a1", "a3", "a4"]);
    Ok(())
}

#[tokio::test]
async fn a_deduplication_id_outlives_its_message_by_five_minutes() -> Outcome {
    let queue = Queue::new("twice.fifo").await?;
    queue.send("once", Some("g")).await?;
    let message = queue.receive(30).await?.remove(0);
    assert_eq!(queue.delete(&message).await, Ok(()));
    queue.endpoint.pass(seconds(270));
    queue.send("once", Some("g")).await?;
    queue.send("once", Some("another")).await?;
    assert!(queue.receive(30).await?.is_empty(), "a copy was taken");
    queue.endpoint.pass(seconds(30));
    queue.send("once", Some("g")).await?;
    assert_eq!(queue.bodies(30).await?, ["once"]);
    Ok(())
}

#[tokio::test]
async fn a_repeated_send_is_told_of_the_first() -> Outcome {
    let queue = Queue::new("repeats.fifo").await?;
    let send = || {
        let request = queue.sqs.send_message().queue_url(&queue.url).message_body("x");
        request.message_group_id("g").message_deduplication_id("d").send()
    };
    let (first, second) = (send().await?, send().await?);
    assert_eq!(first.message_id(), second.message_id());
    assert!(first.sequence_number().is_some() && first.sequence_number() == second.sequence_number());
    Ok(())
}

#[tokio::test]
async fn a_receipt_ends_with_its_visibility_timeout() -> Outcome {
    let queue = Queue::new("expiry.fifo").await?;
    queue.send("x", Some("g")).await?;
    let message = queue.receive(5).await?.remove(0);
    queue.endpoint.pass(seconds(5));
    let expired = Err("InvalidParameterValue".to_owned());
    assert_eq!(queue.delete(&message).await, expired, "nobody else has it, and still");
    assert_eq!(queue.change(&message, 5).await, expired);
    let handle = message.receipt_handle().unwrap_or_default();
    let entry = aws_sdk_sqs::types::DeleteMessageBatchRequestEntry::builder().id("0").receipt_handle(handle).build()?;
    let answer = queue.sqs.delete_message_batch().queue_url(&queue.url).entries(entry).send().await?;
    assert_eq!(answer.failed.first().map(|entry| entry.code.as_str()), Some("ReceiptHandleIsInvalid"));
    let again = queue.receive(5).await?.remove(0);
    assert_eq!(queue.delete(&message).await, expired);
    assert_eq!(queue.delete(&again).await, Ok(()));
    Ok(())
}

#[tokio::test]
async fn a_message_has_a_group_an_id_and_no_delay() -> Outcome {
    let queue = Queue::new("needs.fifo").await?;
    let request = || queue.sqs.send_message().queue_url(&queue.url).message_body("x");
    let refused = request().message_deduplication_id("d").send().await.map_err(|error| code(&error)).err();
    assert_eq!(refused.as_deref(), Some("MissingParameter"));
    let refused = request().message_group_id("g").send().await.map_err(|error| code(&error)).err();
    assert_eq!(refused.as_deref(), Some("InvalidParameterValue"));
    let whole = || request().message_group_id("g").message_deduplication_id("d");
    let refused = whole().delay_seconds(1).send().await.map_err(|error| code(&error)).err();
    assert_eq!(refused.as_deref(), Some("InvalidParameterValue"));
    let refused = request().message_group_id("a b").message_deduplication_id("d").send().await;
    assert!(refused.is_err(), "a blank in a group");
    assert!(whole().send().await?.sequence_number().is_some());
    Ok(())
}
