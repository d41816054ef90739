//! Messages that are received too often, and their way back.

use super::*;

fn policy(receives: u32) -> String {
    format!(r#"{{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:dead","maxReceiveCount":"{receives}"}}"#)
}

#[tokio::test]
async fn a_message_that_was_received_too_often_is_moved_and_comes_back_when_told() -> Outcome {
    let queue = Queue::new("dead").await?;
    let url = create(&queue.sqs, "alive", &[("RedrivePolicy", &policy(2))]).await?;
    queue.sqs.send_message().queue_url(&url).message_body("poison").send().await?;
    for _ in 0..2 {
        assert_eq!(receive(&queue.sqs, &url, 5).await?.len(), 1);
        assert!(queue.receive(0).await?.is_empty(), "too early");
        queue.endpoint.pass(seconds(5));
    }
    assert!(receive(&queue.sqs, &url, 5).await?.is_empty());
    let dead = queue.receive(0).await?;
    assert_eq!(bodies(&dead), ["poison"]);
    let source = system(&dead[0], MessageSystemAttributeName::DeadLetterQueueSourceArn);
    assert!(source.is_some_and(|arn| arn.ends_with(":alive")), "{source:?}");

    let arn = "arn:aws:sqs:us-east-1:000000000000:dead";
    let sources = queue.sqs.list_dead_letter_source_queues().queue_url(&queue.url).send().await?;
    assert_eq!(sources.queue_urls, [url.as_str()]);
    let no_source = "arn:aws:sqs:us-east-1:000000000000:alive";
    let refused = queue.sqs.start_message_move_task().source_arn(no_source).send().await;
    assert_eq!(refused.map_err(|error| code(&error)).err().as_deref(), Some("InvalidParameterValue"));
    let refused = queue.sqs.start_message_move_task().source_arn(format!("{arn}-not")).send().await;
    assert_eq!(refused.map_err(|error| code(&error)).err().as_deref(), Some("ResourceNotFoundException"));
    queue.sqs.start_message_move_task().source_arn(arn).send().await?;
    let task = queue.sqs.list_message_move_tasks().source_arn(arn).send().await?.results.unwrap_or_default().remove(0);
    assert_eq!((task.status(), task.approximate_number_of_messages_moved()), (Some("COMPLETED"), 1));
    assert!(queue.receive(0).await?.is_empty());
    assert_eq!(bodies(&receive(&queue.sqs, &url, 5).await?), ["poison"]);
    Ok(())
}
