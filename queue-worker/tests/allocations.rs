//! The worker allocates one thing for a message beside what a bare loop does: the task of its handler.

mod common;

use common::{Outcome, broker};
use queue_core::{Client, Message};
use queue_worker::{Job, Worker};

const MESSAGES: u32 = 20_000;

async fn filled() -> Outcome<Client> {
    let client = broker().await?;
    let payload = bytes::Bytes::from_static(b"the same for all");
    let orders = client.sender("orders").await?;
    orders.send_batch((0..MESSAGES).map(|_| Message::new(payload.clone()))).await?;
    Ok(client)
}

async fn bare(client: Client) -> Outcome {
    let mut receiver = client.receiver("orders").await?;
    for _ in 0..MESSAGES {
        receiver.receive().await?.ack();
    }
    Ok(())
}

async fn worker(client: Client) -> Outcome {
    let worker = Worker::new(client.receiver("orders").await?).concurrency(64);
    let control = worker.control();
    let mut left = MESSAGES;
    let report = worker.serve(move |job: Job| {
        left -= 1;
        if left == 0 {
            control.stop();
        }
        async move {
            assert_eq!(job.payload().len(), 16);
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(report.await.counts.processed, u64::from(MESSAGES));
    Ok(())
}

/// Allocations of this thread per message.
fn allocations(work: impl AsyncFnOnce(Client) -> Outcome) -> Outcome<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = runtime.block_on(filled())?;
    let mut result = Ok(());
    let counted = allocation_counter::measure(|| result = runtime.block_on(work(client)));
    result?;
    #[allow(clippy::cast_precision_loss, reason = "a count of allocations")]
    Ok(counted.count_total as f64 / f64::from(MESSAGES))
}

#[test]
fn a_message_costs_one_allocation() -> Outcome {
    let (bare, worker) = (allocations(bare)?, allocations(worker)?);
    let more = worker - bare;
    assert!(more > 0.9, "nothing is measured: {worker} with the worker, {bare} without");
    assert!(more < 1.05, "{worker} with the worker, {bare} without");
    Ok(())
}
