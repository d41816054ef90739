//! Handlers that take many messages at a time.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Outcome, Running, broker, only};
use queue_core::{Client, ErrorKind, dead_letter, memory};
use queue_worker::{Batches, Failure, Job, Worker};

const SHORT: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn each_message_of_a_batch_has_its_own_answer() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send_batch(["ok", "again", "never", "ok", "forgotten"]).await?;
    let worker = Worker::new(client.receiver("orders").await?);
    let control = worker.control();
    let sizes = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = sizes.clone();
    let handler = move |batch: Vec<Job>| {
        seen.lock().push(batch.len());
        async move {
            let told = batch.iter().filter(|job| job.attempt() > 1 || job.text() != Some("forgotten"));
            told.map(|job| match (job.text(), job.attempt()) {
                (Some("again"), 1) => Err(Failure::temporary("once")),
                (Some("never"), _) => Err(Failure::permanent("never")),
                _ => Ok(()),
            })
            .collect::<Vec<_>>()
        }
    };
    let batches = Batches::of(10).within(SHORT);
    let running = Running::new(control, tokio::spawn(worker.serve_batches(batches, handler)));
    running.until(|counts| counts.processed == 4).await?;
    let report = running.stop().await?;
    assert_eq!((report.counts.failed, report.counts.dead_lettered), (3, 1));
    assert_eq!(sizes.lock()[0], 5);
    let dead = only(&client, "orders-dlq").await?;
    assert_eq!(dead.text(), Some("never"));
    dead.ack();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fails_or_panics_fails_whole() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send_batch(["a", "b", "c"]).await?;
    let worker = Worker::new(client.receiver("orders").max_deliveries(2).await?);
    let control = worker.control();
    let mut calls = 0;
    let handler = move |_: Vec<Job>| {
        calls += 1;
        assert!(calls > 1, "as the test wants it");
        async { Err(Failure::temporary("no luck")) }
    };
    let running = Running::new(control, tokio::spawn(worker.serve_batches(Batches::of(10).within(SHORT), handler)));
    running.until(|counts| counts.dead_lettered == 3).await?;
    assert_eq!(running.stop().await?.counts.panicked, 1);
    let dead = only(&client, "orders-dlq").await?;
    assert_eq!(dead.headers().get(dead_letter::REASON).and_then(|value| value.as_str()), Some("no luck"));
    dead.ack();
    Ok(())
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_is_in_no_batch() -> Outcome {
    // Without a time to live: the worker looks at the deadline.
    let client = Client::connect_with("memory://?profile=sqs", &[memory::DRIVER]).await?;
    client.sender("orders").await?.send("order").await?;
    let late = client.request("orders", "late").timeout(Duration::from_millis(50)).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::Timeout);
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seeing = seen.clone();
    let handler = move |batch: Vec<Job>| {
        seeing.lock().extend(batch.iter().map(|job| job.text().unwrap_or_default().to_owned()));
        async { Ok::<_, Failure>(()) }
    };
    let worker = Worker::new(client.receiver("orders").await?);
    let control = worker.control();
    let running = Running::new(control, tokio::spawn(worker.serve_batches(Batches::of(10).within(SHORT), handler)));
    running.until(|counts| counts.processed + counts.expired == 2).await?;
    assert_eq!(running.stop().await?.counts.expired, 1);
    assert_eq!(*seen.lock(), ["order"]);
    Ok(())
}
