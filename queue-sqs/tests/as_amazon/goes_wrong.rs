//! The faults: each does what it says, and nothing when it is not asked for.

use std::collections::BTreeSet;

use aws_sdk_sqs::error::SdkError;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use tokio::time::Instant;

use super::*;

async fn faulty(name: &str, faults: Faults) -> Result<Queue, Failure> {
    Queue::on(Endpoint::with_faults(faults).await?, name).await
}

async fn send_numbered(queue: &Queue, count: usize) -> Outcome {
    for index in 0..count {
        queue.send(&index.to_string(), None).await?;
    }
    Ok(())
}

#[tokio::test]
async fn nothing_goes_wrong_unasked() -> Outcome {
    let queue = Queue::new("peace").await?;
    send_numbered(&queue, 10).await?;
    let received = queue.receive(30).await?;
    assert_eq!(bodies(&received), (0..10).map(|i| i.to_string()).collect::<Vec<_>>());
    for message in &received {
        queue.delete(message).await?;
    }
    assert!(queue.receive(30).await?.is_empty());
    assert_eq!(queue.endpoint.counts().faults.values().sum::<u64>(), 0);
    assert_eq!(queue.endpoint.counts().of("SendMessage"), 10);
    assert_eq!(queue.endpoint.counts().about_messages(), 22);
    Ok(())
}

#[tokio::test]
async fn a_duplicate_is_the_same_message_once_more() -> Outcome {
    let queue = faulty("duplicates", Faults { duplicate: 1.0, ..Faults::default() }).await?;
    queue.send("x", None).await?;
    let first = queue.sqs.receive_message().queue_url(&queue.url).send().await?.messages.unwrap_or_default().remove(0);
    queue.endpoint.set_faults(Faults::default());
    assert_eq!(queue.delete(&first).await, Ok(()));
    let second = queue.receive(30).await?.remove(0);
    assert_eq!(first.message_id(), second.message_id());
    assert_eq!(queue.delete(&second).await, Ok(()));
    assert_eq!(queue.endpoint.counts().fault("duplicate"), 1);
    Ok(())
}

#[tokio::test]
async fn a_standard_queue_reorders_and_a_fifo_queue_never() -> Outcome {
    let endless = Faults { reorder: 1.0, duplicate: 1.0, ..Faults::default() };
    let queue = faulty("order", Faults { duplicate: 0.0, ..endless }).await?;
    send_numbered(&queue, 10).await?;
    let order = queue.bodies(30).await?;
    assert_ne!(order.first().map(String::as_str), Some("0"), "{order:?}");
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 10);
    let queue = faulty("order.fifo", endless).await?;
    for body in ["0", "1", "2"] {
        queue.send(body, Some("g")).await?;
    }
    assert_eq!(queue.bodies(30).await?, ["0", "1", "2"]);
    Ok(())
}

#[tokio::test]
async fn a_throttled_request_has_done_nothing() -> Outcome {
    let queue = faulty("throttle", Faults { throttle: 1.0, ..Faults::default() }).await?;
    let sent = queue.sqs.send_message().queue_url(&queue.url).message_body("x").send().await;
    assert_eq!(sent.map_err(|error| code(&error)).err().as_deref(), Some("RequestThrottled"));
    queue.endpoint.set_faults(Faults::default());
    assert!(queue.receive(30).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_lost_answer_is_that_of_a_request_that_was_done() -> Outcome {
    let queue = faulty("lost", Faults { lose: 1.0, ..Faults::default() }).await?;
    let (mut hung_up, mut failed) = (0, 0);
    for _ in 0..20 {
        match queue.sqs.send_message().queue_url(&queue.url).message_body("x").send().await {
            Ok(_) => return Err("an answer came".into()),
            Err(SdkError::ServiceError(error)) if error.raw().status().as_u16() == 500 => failed += 1,
            Err(SdkError::DispatchFailure(_)) => hung_up += 1,
            Err(other) => return Err(other.into()),
        }
    }
    assert!(hung_up > 0 && failed > 0, "both kinds: {hung_up}, {failed}");
    queue.endpoint.set_faults(Faults::default());
    assert_eq!(queue.receive(30).await?.len() + queue.receive(30).await?.len(), 20);
    Ok(())
}

#[tokio::test]
async fn a_failed_entry_is_not_done_and_the_others_are() -> Outcome {
    let queue = faulty("partial", Faults { fail_entry: 0.5, ..Faults::default() }).await?;
    let entry = |i: i32| SendMessageBatchRequestEntry::builder().id(i.to_string()).message_body(i.to_string()).build();
    let entries = (0..10).map(entry).collect::<Result<Vec<_>, _>>()?;
    let answer = queue.sqs.send_message_batch().queue_url(&queue.url).set_entries(Some(entries)).send().await?;
    assert_eq!(answer.failed.len() + answer.successful.len(), 10);
    assert_eq!(answer.failed.len() as u64, queue.endpoint.counts().fault("fail_entry"));
    assert!(answer.failed.iter().all(|entry| !entry.sender_fault && entry.code == "InternalError"));
    queue.endpoint.set_faults(Faults::default());
    let taken: Vec<_> = answer.successful.iter().map(|entry| entry.id.clone()).collect();
    assert_eq!(queue.bodies(30).await?, taken);
    Ok(())
}

#[tokio::test]
async fn a_fault_that_is_due_twice_happens() -> Outcome {
    let queue = faulty("due", Faults { fail_entry: 0.1, ..Faults::default() }).await?;
    let mut spared = 0;
    for _ in 0..100 {
        let entry = |i: i32| SendMessageBatchRequestEntry::builder().id(i.to_string()).message_body("x").build();
        let entries = (0..10).map(entry).collect::<Result<Vec<_>, _>>()?;
        let answer = queue.sqs.send_message_batch().queue_url(&queue.url).set_entries(Some(entries)).send().await?;
        for i in 0..10 {
            spared = if answer.failed.iter().any(|entry| entry.id == i.to_string()) { 0 } else { spared + 1 };
            assert!(spared < 20, "with one in ten");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_expired_receipt_is_worth_nothing_and_its_message_is_back() -> Outcome {
    for (name, told) in [("expire", Ok(())), ("expire.fifo", Err("InvalidParameterValue".to_owned()))] {
        let queue = faulty(name, Faults { expire: 1.0, ..Faults::default() }).await?;
        queue.send("x", Some("g")).await?;
        let message = queue.receive(30).await?.remove(0);
        assert_eq!(queue.delete(&message).await, told);
        let again = queue.receive(30).await?.remove(0);
        assert_eq!(queue.change(&again, 60).await, Err("InvalidParameterValue".to_owned()));
        queue.endpoint.set_faults(Faults::default());
        let last = queue.receive(30).await?.remove(0);
        assert_eq!(queue.delete(&last).await, Ok(()));
    }
    Ok(())
}

#[tokio::test]
async fn a_delayed_answer_comes() -> Outcome {
    let late_by = Duration::from_millis(100);
    let queue = faulty("late", Faults { delay: 1.0, late_by, ..Faults::default() }).await?;
    let began = Instant::now();
    send_numbered(&queue, 10).await?;
    assert_eq!(queue.endpoint.counts().fault("delay"), 10);
    assert!(began.elapsed() >= 10 * late_by);
    Ok(())
}
