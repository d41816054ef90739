//! Queues: made, described, emptied, deleted.

use aws_sdk_sqs::types::QueueAttributeName as Name;

use super::*;

async fn attribute(queue: &Queue, name: Name) -> Result<Option<String>, Failure> {
    let request = queue.sqs.get_queue_attributes().queue_url(&queue.url).attribute_names(name.clone());
    Ok(request.send().await?.attributes.and_then(|mut all| all.remove(&name)))
}

#[tokio::test]
async fn a_queue_is_what_it_was_made_as() -> Outcome {
    let queue = Queue::new("made").await?;
    let url = create(&queue.sqs, "as-told", &[("VisibilityTimeout", "17")]).await?;
    assert_eq!(create(&queue.sqs, "as-told", &[("VisibilityTimeout", "17")]).await?, url);
    assert_eq!(create(&queue.sqs, "as-told", &[]).await?, url);
    let other = queue.sqs.create_queue().queue_name("as-told").attributes(Name::VisibilityTimeout, "18").send().await;
    assert_eq!(other.map_err(|error| code(&error)).err().as_deref(), Some("QueueAlreadyExists"));
    for (name, value, refused) in [
        (Name::VisibilityTimeout, "43201", "InvalidAttributeValue"),
        (Name::MaximumMessageSize, "1048577", "InvalidAttributeValue"),
        (Name::from("Colour"), "red", "InvalidAttributeName"),
        (Name::FifoThroughputLimit, "perQueue", "InvalidAttributeName"),
    ] {
        let outcome = queue.sqs.create_queue().queue_name("wrong").attributes(name, value).send().await;
        assert_eq!(outcome.map_err(|error| code(&error)).err().as_deref(), Some(refused));
    }
    assert_eq!(attribute(&queue, Name::MaximumMessageSize).await?.as_deref(), Some("1048576"));
    let set = queue.sqs.set_queue_attributes().queue_url(&queue.url);
    set.attributes(Name::MaximumMessageSize, "2048").send().await?;
    assert_eq!(attribute(&queue, Name::MaximumMessageSize).await?.as_deref(), Some("2048"));
    let arn = attribute(&queue, Name::QueueArn).await?;
    assert_eq!(arn.as_deref(), Some("arn:aws:sqs:us-east-1:000000000000:made"));
    let listed = queue.sqs.list_queues().queue_name_prefix("as-").send().await?;
    assert_eq!(listed.queue_urls, Some(vec![url.clone()]));
    queue.sqs.tag_queue().queue_url(&url).tags("team", "orders").send().await?;
    let tags = queue.sqs.list_queue_tags().queue_url(&url).send().await?.tags.unwrap_or_default();
    assert_eq!(tags.get("team").map(String::as_str), Some("orders"));
    Ok(())
}

#[tokio::test]
async fn a_queue_tells_how_many_messages_it_has() -> Outcome {
    let queue = Queue::new("numbers").await?;
    queue.sqs.send_message().queue_url(&queue.url).message_body("x").delay_seconds(60).send().await?;
    for body in ["a", "b", "c"] {
        queue.send(body, None).await?;
    }
    queue.sqs.receive_message().queue_url(&queue.url).send().await?;
    let numbers = [
        attribute(&queue, Name::ApproximateNumberOfMessages).await?,
        attribute(&queue, Name::ApproximateNumberOfMessagesNotVisible).await?,
        attribute(&queue, Name::ApproximateNumberOfMessagesDelayed).await?,
    ];
    assert_eq!(numbers.map(Option::unwrap_or_default), ["2", "1", "1"]);
    Ok(())
}

#[tokio::test]
async fn a_queue_is_purged_once_a_minute() -> Outcome {
    let queue = Queue::new("purged").await?;
    let purge = || async { queue.sqs.purge_queue().queue_url(&queue.url).send().await.map_err(|error| code(&error)) };
    queue.send("x", None).await?;
    purge().await?;
    assert!(queue.receive(5).await?.is_empty());
    queue.endpoint.pass(seconds(40));
    assert_eq!(purge().await.err().as_deref(), Some("PurgeQueueInProgress"));
    queue.endpoint.pass(seconds(20));
    purge().await?;
    Ok(())
}

#[tokio::test]
async fn a_name_is_free_a_minute_after_its_queue_was_deleted() -> Outcome {
    let queue = Queue::new("deleted").await?;
    queue.sqs.delete_queue().queue_url(&queue.url).send().await?;
    let send = queue.sqs.send_message().queue_url(&queue.url).message_body("x").send().await;
    assert_eq!(send.map_err(|error| code(&error)).err().as_deref(), Some("NonExistentQueue"));
    let found = queue.sqs.get_queue_url().queue_name("deleted").send().await;
    assert_eq!(found.map_err(|error| code(&error)).err().as_deref(), Some("NonExistentQueue"));
    let again = || async { queue.sqs.create_queue().queue_name("deleted").send().await.map_err(|error| code(&error)) };
    assert_eq!(again().await.err().as_deref(), Some("QueueDeletedRecently"));
    queue.endpoint.pass(seconds(60));
    again().await?;
    Ok(())
}
