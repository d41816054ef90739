//! Attempts are counted exactly; what is given back is not lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyqueue::worker::{Failure, Job, OrFail, Worker};
use anyqueue::{Message, dead_letter};
use tokio::time::sleep;

use crate::Outcome;
use crate::place::{LEASE, Place, run, until};

/// Longer than a poll of SQS goes on after its receiver.
const BACKOFF: Duration = Duration::from_secs(3);

/// A message fails in each of three lives of the worker, and once more in the last.
pub(crate) fn exact(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("exact");
        // The memory broker ends with its last client.
        let keeper = place.client().await?;
        let calls = Arc::new(AtomicU32::new(0));
        for life in 1..=3 {
            let client = place.client().await?;
            if life == 1 {
                client.sender(&*queue).await?.send("fails").await?;
            }
            let receiver = client.receiver(&*queue).max_deliveries(4).backoff(BACKOFF, BACKOFF).lease(LEASE).await?;
            let worker = Worker::new(receiver);
            let (control, counted) = (worker.control(), calls.clone());
            let ending = control.clone();
            let served = tokio::spawn(worker.serve(move |job: Job| {
                let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
                let ending = ending.clone();
                async move {
                    assert_eq!((job.attempt(), job.is_last_attempt()), (call, call == 4));
                    if call == 2 {
                        // What fails while its worker ends has failed all the same.
                        ending.stop();
                        sleep(Duration::from_millis(100)).await;
                    }
                    Err::<(), _>(Failure::temporary("as the test wants it"))
                }
            }));
            until(|| control.counts().failed == if life == 3 { 2 } else { 1 }).await;
            control.stop();
            let report = served.await?;
            assert!(report.is_clean(), "life {life}: {report:?}");
            assert_eq!((report.counts.panicked, report.counts.dead_lettered), (0, u64::from(life == 3)));
            client.close(LEASE).await;
        }
        let client = place.client().await?;
        assert_eq!(calls.load(Ordering::SeqCst), 4);
        // Put back, it is a message like another.
        let tried = |m: &Message| m.headers().get(dead_letter::ATTEMPTS).and_then(|n| n.as_int()) == Some(4);
        let redriven = client.redrive(&*queue).filter(tried).await?;
        assert_eq!((redriven.moved, redriven.kept), (1, 0), "{redriven:?}");
        let worker = Worker::new(client.receiver(&*queue).await?);
        let control = worker.control();
        let served = tokio::spawn(worker.serve(|job: Job| async move { assert_eq!(job.attempt(), 1) }));
        until(|| control.counts().processed == 1).await;
        control.stop();
        assert!(served.await?.is_clean());
        keeper.close(LEASE).await;
        Ok(())
    })
}

pub(crate) fn reason(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("reason");
        let client = place.client().await?;
        client.sender(&*queue).await?.send(Message::new("seven").id("7")).await?;
        let worker = Worker::new(client.receiver(&*queue).max_deliveries(2).backoff(BACKOFF, BACKOFF).await?);
        let control = worker.control();
        let served = tokio::spawn(worker.serve(|job: Job| async move {
            let parsed = job.text().unwrap_or_default().parse::<u32>();
            if job.attempt() == 1 {
                parsed.map(drop).map_err(Failure::temporary)
            } else {
                parsed.or_permanent().map(drop)
            }
        }));
        until(|| control.counts().dead_lettered == 1).await;
        control.stop();
        let report = served.await?;
        assert!(report.is_clean(), "{report:?}");
        assert_eq!(report.counts.failed, 2);
        let dead = client.receiver(format!("{queue}-dlq")).discard_dead_letters().await?.receive().await?;
        let reason = dead.headers().get(dead_letter::REASON).and_then(|reason| reason.as_str());
        assert_eq!(reason, Some("invalid digit found in string"));
        assert_eq!((dead.text(), dead.get_id()), (Some("seven"), Some("7")));
        dead.ack_confirmed().await?;
        Ok(())
    })
}

/// What was not worked on comes to another worker at once, as the attempt that it was.
pub(crate) fn drain(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("drain");
        let keeper = place.client().await?;
        let client = place.client().await?;
        client.sender(&*queue).await?.send_batch((0..100).map(|n| n.to_string())).await?;
        let worker = Worker::new(client.receiver(&*queue).await?).concurrency(10).drain(Duration::from_secs(2));
        let control = worker.control();
        // Two of ten never end.
        let served = tokio::spawn(worker.serve(|job: Job| async move {
            match job.text() {
                Some("0" | "1") => std::future::pending().await,
                _ => sleep(Duration::from_millis(300)).await,
            }
        }));
        until(|| control.counts().processed >= 8).await;
        control.stop();
        let first = served.await?;
        assert!(first.is_clean(), "{first:?}");
        client.close(LEASE).await;
        let client = place.client().await?;
        let worker = Worker::new(client.receiver(&*queue).await?).concurrency(10);
        let control = worker.control();
        let served = tokio::spawn(worker.serve(|_: Job| async {}));
        until(|| first.counts.processed + control.counts().processed >= 100).await;
        // Nothing comes twice.
        sleep(Duration::from_millis(500)).await;
        control.stop();
        let second = served.await?;
        assert!(second.is_clean(), "{second:?}");
        assert_eq!(first.counts.processed + second.counts.processed, 100);
        assert_eq!((first.counts.failed, second.counts.failed), (0, 0));
        keeper.close(LEASE).await;
        Ok(())
    })
}
