//! The worker allocates one thing for a message beside what a bare loop does: the future of its handler.

mod common;

use std::time::Duration;

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

/// With 64 handlers, of which each waits for something, or is done at once.
async fn worked(client: Client, waits: bool, deadline: Option<Duration>) -> Outcome {
    let mut worker = Worker::new(client.receiver("orders").await?).concurrency(64);
    if let Some(deadline) = deadline {
        worker = worker.deadline(deadline);
    }
    let control = worker.control();
    let mut left = MESSAGES;
    let report = worker.serve(move |job: Job| {
        left -= 1;
        if left == 0 {
            control.stop();
        }
        async move {
            assert_eq!(job.payload().len(), 16);
            if waits {
                tokio::task::yield_now().await;
            }
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

/// How many more than a bare loop.
fn more(waits: bool, deadline: Option<Duration>) -> Outcome<f64> {
    Ok(allocations(async |client| worked(client, waits, deadline).await)? - allocations(bare)?)
}

#[test]
fn a_message_costs_one_allocation() -> Outcome {
    for waits in [false, true] {
        let more = more(waits, None)?;
        assert!((0.9..1.05).contains(&more), "{more} of a handler that waits: {waits}");
    }
    Ok(())
}

#[test]
fn a_deadline_costs_one_more_once_a_handler_waits() -> Outcome {
    let deadline = Some(Duration::from_secs(60));
    let (done, waits) = (more(false, deadline)?, more(true, deadline)?);
    assert!((0.9..1.05).contains(&done), "{done} of a handler that is done at once");
    assert!((1.9..2.1).contains(&waits), "{waits} of a handler that waits");
    Ok(())
}
