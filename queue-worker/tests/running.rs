//! How a worker runs: how many handlers, in which order, until when.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Outcome, Running, broker, receiver};
use parking_lot::Mutex;
use queue_core::{ErrorKind, Message, Ordering as Order};
use queue_worker::{Adaptive, BoxError, Failure, Job, OrFail, Worker};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceBuilder;
use tower::limit::{ConcurrencyLimitLayer, RateLimitLayer};
use tower::timeout::TimeoutLayer;

const SHORT: Duration = Duration::from_secs(1);

/// Handlers at a time, at most.
#[derive(Default)]
struct Most {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Most {
    async fn work(&self, time: Duration) {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        sleep(time).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
    }

    fn get(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

async fn numbers(client: &queue_core::Client, count: usize) -> Outcome {
    client.sender("orders").await?.send_batch((0..count).map(|n| n.to_string())).await?;
    Ok(())
}

/// A queue that is never empty, and handlers that wait for nothing: on one thread, others get their turn all the same.
#[tokio::test]
async fn light_handlers_let_other_tasks_run() -> Outcome {
    const MESSAGES: usize = 20_000;
    let client = broker().await?;
    numbers(&client, MESSAGES).await?;
    let done = Arc::new(AtomicUsize::new(0));
    let (doing, watching) = (done.clone(), done.clone());
    let other = tokio::spawn(async move {
        let mut turns = 0;
        while watching.load(Ordering::Relaxed) < MESSAGES {
            turns += usize::from(watching.load(Ordering::Relaxed) > 0);
            tokio::task::yield_now().await;
        }
        turns
    });
    let worker = Worker::new(client.receiver("orders").prefetch(MESSAGES).await?);
    let running = Running::start(worker, move |_: Job| {
        doing.fetch_add(1, Ordering::Relaxed);
        async {}
    });
    running.until(|counts| counts.processed == MESSAGES as u64).await?;
    running.stop().await?;
    let turns = other.await?;
    assert!(turns >= 5, "{turns} turns");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn as_many_handlers_run_as_may_and_no_more() -> Outcome {
    let client = broker().await?;
    numbers(&client, 100).await?;
    let most = Arc::new(Most::default());
    let worker = Worker::new(client.receiver("orders").await?).concurrency(10);
    let began = Instant::now();
    let working = most.clone();
    let running = Running::start(worker, move |_: Job| {
        let most = working.clone();
        async move { most.work(SHORT).await }
    });
    running.until(|counts| counts.processed == 100).await?;
    let took = began.elapsed();
    assert!(took >= 10 * SHORT && took < 11 * SHORT, "{took:?}");
    assert_eq!(most.get(), 10);
    running.stop().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn one_that_is_stuck_stops_no_other() -> Outcome {
    let client = broker().await?;
    numbers(&client, 10).await?;
    let worker = Worker::new(client.receiver("orders").await?).concurrency(2).drain(SHORT);
    let running = Running::start(worker, |job: Job| async move {
        match job.text() {
            Some("0") => std::future::pending().await,
            _ => sleep(SHORT).await,
        }
    });
    running.until(|counts| counts.processed == 9).await?;
    assert_eq!(running.stop().await?.counts.released, 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn layers_of_tower_wrap_the_handler() -> Outcome {
    let client = broker().await?;
    numbers(&client, 20).await?;
    let most = Arc::new(Most::default());
    let working = most.clone();
    let layers = ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(3)).layer(TimeoutLayer::new(2 * SHORT));
    let worker = Worker::new(client.receiver("orders").await?).layer(layers.into_inner());
    let control = worker.control();
    let serving = worker.serve(move |job: Job| {
        let most = working.clone();
        async move {
            // The first is too late once.
            let late = job.text() == Some("0") && job.attempt() == 1;
            most.work(if late { 5 * SHORT } else { SHORT }).await;
        }
    });
    let running = Running::new(control, tokio::spawn(serving));
    running.until(|counts| counts.processed == 20).await?;
    let report = running.stop().await?;
    assert_eq!(report.counts.failed, 1);
    // One that was dropped is not counted down.
    assert!((3..=4).contains(&most.get()), "{}", most.get());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_slows_the_worker_down() -> Outcome {
    let client = broker().await?;
    numbers(&client, 50).await?;
    let worker = Worker::new(client.receiver("orders").await?).layer(RateLimitLayer::new(10, SHORT));
    let control = worker.control();
    let began = Instant::now();
    let running = Running::new(control, tokio::spawn(worker.serve(|_: Job| async {})));
    running.until(|counts| counts.processed == 50).await?;
    let took = began.elapsed();
    assert!(took >= 4 * SHORT && took < 6 * SHORT, "{took:?}");
    assert_eq!(running.stop().await?.counts.failed, 0);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_over_ends_the_worker_and_loses_nothing() -> Outcome {
    let client = broker().await?;
    numbers(&client, 3).await?;
    let service = tower::service_fn(|_: Job| async { Ok::<_, BoxError>(()) });
    let over = Over { left: 1, inner: service };
    let running = Running::start(Worker::new(client.receiver("orders").await?), over);
    let report = running.end().await?;
    assert_eq!(report.counts.processed, 1);
    assert_eq!(report.errors.len(), 1, "{report:?}");
    assert_eq!(report.errors[0].kind(), ErrorKind::Internal);
    assert!(!report.is_clean());
    let mut rest = receiver(&client, "orders").await?;
    for expected in ["1", "2"] {
        let delivery = rest.receive().await?;
        assert_eq!((delivery.text(), delivery.attempt()), (Some(expected), 1));
        delivery.ack();
    }
    Ok(())
}

/// A service that takes so many messages.
struct Over<S> {
    left: usize,
    inner: S,
}

impl<S: tower::Service<Job, Error = BoxError>> tower::Service<Job> for Over<S> {
    type Response = S::Response;
    type Error = BoxError;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), BoxError>> {
        match self.left {
            0 => std::task::Poll::Ready(Err("it is over".into())),
            _ => self.inner.poll_ready(cx),
        }
    }

    fn call(&mut self, job: Job) -> S::Future {
        self.left -= 1;
        self.inner.call(job)
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_lets_handlers_end() -> Outcome {
    let client = broker().await?;
    numbers(&client, 50).await?;
    let worker = Worker::new(client.receiver("orders").await?).concurrency(10).drain(5 * SHORT);
    // The last one ends alone.
    let running = Running::start(worker, |job: Job| match job.text() {
        Some("9") => sleep(4 * SHORT),
        _ => sleep(3 * SHORT),
    });
    sleep(SHORT).await;
    running.control.stop();
    // Others have the rest before it is over.
    let mut rest = receiver(&client, "orders").await?;
    for _ in 0..40 {
        let delivery = timeout(SHORT, rest.receive()).await??;
        assert_eq!(delivery.attempt(), 1);
        delivery.ack();
    }
    assert_eq!(running.control.running(), 10);
    let began = Instant::now();
    let report = running.end().await?;
    assert!(began.elapsed() < 4 * SHORT, "{:?}", began.elapsed());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.counts.processed, report.counts.released), (10, 40));
    assert!(timeout(SHORT, rest.receive()).await.is_err());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_does_not_end_in_the_drain_is_given_back() -> Outcome {
    let client = broker().await?;
    numbers(&client, 3).await?;
    let end = Arc::new(Notify::new());
    let told = end.clone();
    let worker =
        Worker::new(client.receiver("orders").await?).drain(5 * SHORT).until(async move { told.notified().await });
    let dropped = Arc::new(AtomicUsize::new(0));
    let counted = dropped.clone();
    let running = Running::start(worker, move |job: Job| {
        let counted = counted.clone();
        async move {
            let gone = Dropped(counted);
            if job.text() != Some("0") {
                std::future::pending::<()>().await;
            }
            drop(gone);
        }
    });
    running.until(|counts| counts.processed == 1).await?;
    let began = Instant::now();
    end.notify_one();
    let report = running.end().await?;
    let took = began.elapsed();
    assert!(took >= 5 * SHORT && took < 7 * SHORT, "{took:?}");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.counts.processed, report.counts.released, report.counts.failed), (1, 2, 0));
    assert_eq!(dropped.load(Ordering::SeqCst), 3);
    let mut rest = receiver(&client, "orders").await?;
    for _ in 0..2 {
        let delivery = timeout(SHORT, rest.receive()).await??;
        assert_eq!(delivery.attempt(), 1);
        delivery.ack();
    }
    Ok(())
}

struct Dropped(Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_worker_starts_nothing() -> Outcome {
    let client = broker().await?;
    numbers(&client, 10).await?;
    let worker = Worker::new(client.receiver("orders").await?).concurrency(1);
    let control = worker.control();
    control.pause();
    let running = Running::start(worker, |_: Job| sleep(SHORT));
    sleep(10 * SHORT).await;
    assert_eq!(control.counts().processed, 0);
    control.resume();
    running.until(|counts| counts.processed == 3).await?;
    control.pause();
    sleep(10 * SHORT).await;
    assert_eq!(control.counts().processed, 4);
    // What it had fetched is another's meanwhile.
    let mut other = receiver(&client, "orders").await?;
    assert_eq!(other.receive_batch_within(10, SHORT).await?.len(), 6);
    // A paused worker can end.
    assert_eq!(running.stop().await?.counts.released, 6);
    control.resume();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_pause_keeps_the_order_of_keys() -> Outcome {
    let client = broker().await?;
    let sender = client.sender("orders").await?;
    sender.send_batch((0..20).map(|n| queue_core::Message::new(n.to_string()).key(format!("{}", n % 2)))).await?;
    let receiver = client.receiver("orders").ordering(queue_core::Ordering::PerKey).await?;
    let worker = Worker::new(receiver).concurrency(4);
    let (control, seen) = (worker.control(), Arc::new(parking_lot::Mutex::new(Vec::new())));
    let noting = seen.clone();
    let running = Running::start(worker, move |job: Job| {
        noting.lock().push(job.text().unwrap_or_default().parse::<u32>().unwrap_or_default());
        sleep(SHORT)
    });
    for processed in [3, 7, 11] {
        running.until(|counts| counts.processed >= processed).await?;
        control.pause();
        sleep(5 * SHORT).await;
        control.resume();
    }
    running.until(|counts| counts.processed == 20).await?;
    running.stop().await?;
    for key in 0..2 {
        let of_key: Vec<_> = seen.lock().iter().copied().filter(|n| n % 2 == key).collect();
        assert_eq!(of_key, (0..10).map(|n| 2 * n + key).collect::<Vec<_>>());
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_receiver_ends_the_worker() -> Outcome {
    let client = broker().await?;
    let worker = Worker::new(client.receiver("orders").await?);
    let running = Running::start(worker, |_: Job| async {});
    client.delete("orders").await?;
    let report = running.end().await?;
    assert_eq!(report.errors.first().map(queue_core::Error::kind), Some(ErrorKind::NotFound), "{report:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_long_handler_sees_its_message_once() -> Outcome {
    let client = broker().await?;
    numbers(&client, 20).await?;
    let lease = 10 * SHORT;
    let worker = Worker::new(client.receiver("orders").lease(lease).await?).concurrency(2);
    let running = Running::start(worker, move |job: Job| async move {
        assert_eq!(job.attempt(), 1);
        sleep(3 * lease).await;
        assert!(timeout(SHORT, job.hold().lost()).await.is_err(), "it was lost");
    });
    running.until(|counts| counts.processed == 20).await?;
    let report = running.stop().await?;
    assert_eq!((report.counts.failed, report.counts.lost), (0, 0));
    Ok(())
}

#[tokio::test]
async fn the_order_of_a_key_is_kept_with_many_handlers() -> Outcome {
    let client = broker().await?;
    let orders = client.sender("orders").await?;
    let (keys, each) = (1000_usize, 20_usize);
    for n in 0..each {
        orders.send_batch((0..keys).map(|key| Message::new(n.to_string()).key(key.to_string()))).await?;
    }
    let opening = client.receiver("orders").ordering(Order::PerKey).backoff(Duration::ZERO, Duration::ZERO);
    let worker = Worker::new(opening.prefetch(2048).await?).concurrency(64);
    let done: Arc<Mutex<HashMap<String, Vec<usize>>>> = Arc::default();
    let doing = done.clone();
    let running = Running::start(worker, move |job: Job| {
        let done = doing.clone();
        async move {
            let key = String::from_utf8(job.get_key().ok_or("no key").or_permanent()?.to_vec())?;
            let number: usize = job.text().ok_or("no text").or_permanent()?.parse()?;
            tokio::task::yield_now().await;
            if (number + key.len()).is_multiple_of(10) && job.attempt() == 1 {
                return Err(Failure::temporary("once"));
            }
            done.lock().entry(key).or_default().push(number);
            Ok(())
        }
    });
    running.until(|counts| counts.processed == (keys * each) as u64).await?;
    assert!(running.stop().await?.counts.failed >= (keys * each / 20) as u64);
    let expected: Vec<_> = (0..each).collect();
    let done = done.lock();
    assert_eq!(done.len(), keys);
    for (key, numbers) in done.iter() {
        assert_eq!(*numbers, expected, "key {key}");
    }
    Ok(())
}

/// What handlers need takes eight at a time: more only wait for each other.
#[tokio::test(start_paused = true)]
async fn an_adaptive_worker_finds_what_handlers_can_take() -> Outcome {
    let client = broker().await?;
    numbers(&client, 5000).await?;
    let worker = Worker::new(client.receiver("orders").await?).adaptive(Adaptive::new(1, 200));
    let needed = Arc::new(Semaphore::new(8));
    let running = Running::start(worker, move |_: Job| {
        let needed = needed.clone();
        async move {
            let _place = needed.acquire().await;
            sleep(Duration::from_millis(10)).await;
        }
    });
    running.until(|counts| counts.processed >= 4000).await?;
    let limit = running.control.limit();
    assert!((8..=24).contains(&limit), "{limit}");
    running.stop().await?;
    Ok(())
}
