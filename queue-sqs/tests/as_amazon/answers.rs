//! Receiving, deleting, and changing visibility, on standard queues.

use tokio::time::Instant;

use super::*;

#[tokio::test]
async fn a_poll_waits_for_a_message_and_no_longer_than_it_was_told() -> Outcome {
    let queue = Queue::new("polls").await?;
    let poll = |wait| queue.sqs.receive_message().queue_url(&queue.url).wait_time_seconds(wait).send();
    let began = Instant::now();
    assert!(poll(1).await?.messages.is_none_or(|m| m.is_empty()));
    assert!(began.elapsed() >= seconds(1));
    let (polled, sent) = tokio::join!(poll(20), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        queue.send("at last", None).await
    });
    sent?;
    assert_eq!(bodies(&polled?.messages.unwrap_or_default()), ["at last"]);
    assert!(began.elapsed() < seconds(10));
    assert_eq!(poll(21).await.map_err(|error| code(&error)).err().as_deref(), Some("InvalidParameterValue"));
    Ok(())
}

#[tokio::test]
async fn a_message_comes_back_after_its_visibility_timeout_and_is_counted() -> Outcome {
    let queue = Queue::new("visibility").await?;
    queue.send("again", None).await?;
    for count in ["1", "2", "3"] {
        let received = queue.receive(60).await?;
        let told = received.first().and_then(|m| system(m, MessageSystemAttributeName::ApproximateReceiveCount));
        assert_eq!(told, Some(count));
        queue.endpoint.pass(seconds(40));
        assert!(queue.receive(60).await?.is_empty());
        queue.endpoint.pass(seconds(20));
    }
    Ok(())
}

#[tokio::test]
async fn an_old_receipt_deletes_nothing_and_is_told_success() -> Outcome {
    let queue = Queue::new("receipts").await?;
    queue.send("x", None).await?;
    let old = queue.receive(5).await?.remove(0);
    queue.endpoint.pass(seconds(5));
    let new = queue.receive(5).await?.remove(0);
    assert_eq!(queue.delete(&old).await, Ok(()));
    queue.endpoint.pass(seconds(5));
    let newest = queue.receive(5).await?.remove(0);
    assert_eq!(queue.delete(&new).await, Ok(()));
    // The newest is good, even late.
    queue.endpoint.pass(seconds(5));
    assert_eq!(queue.delete(&newest).await, Ok(()));
    assert!(queue.receive(5).await?.is_empty());
    assert_eq!(queue.delete(&newest).await, Ok(()), "twice");
    Ok(())
}

#[tokio::test]
async fn a_handle_that_is_none_is_refused() -> Outcome {
    let queue = Queue::new("handles").await?;
    let other = create(&queue.sqs, "other", &[]).await?;
    queue.sqs.send_message().queue_url(&other).message_body("x").send().await?;
    let foreign = receive(&queue.sqs, &other, 5).await?.remove(0);
    let none = Message::builder().receipt_handle("no handle").build();
    for message in [&foreign, &none] {
        assert_eq!(queue.delete(message).await, Err("ReceiptHandleIsInvalid".to_owned()));
        assert_eq!(queue.change(message, 5).await, Err("ReceiptHandleIsInvalid".to_owned()));
    }
    Ok(())
}

#[tokio::test]
async fn visibility_changes_only_in_flight_and_within_twelve_hours() -> Outcome {
    let queue = Queue::new("changes").await?;
    queue.send("x", None).await?;
    let message = queue.receive(5).await?.remove(0);
    assert_eq!(queue.change(&message, 43_201).await, Err("InvalidParameterValue".to_owned()));
    assert_eq!(queue.change(&message, 60).await, Ok(()));
    queue.endpoint.pass(seconds(40));
    assert!(queue.receive(5).await?.is_empty());
    assert_eq!(queue.change(&message, 43_200).await, Err("InvalidParameterValue".to_owned()), "40 s too long");
    assert_eq!(queue.change(&message, 0).await, Ok(()));
    assert_eq!(queue.change(&message, 60).await, Err("MessageNotInflight".to_owned()));
    let again = queue.receive(5).await?.remove(0);
    assert_eq!(queue.change(&message, 60).await, Err("InvalidParameterValue".to_owned()), "an old handle");
    assert_eq!(queue.delete(&again).await, Ok(()));
    assert_eq!(queue.change(&again, 60).await, Err("InvalidParameterValue".to_owned()), "a deleted message");
    Ok(())
}
