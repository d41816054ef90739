//! Messages through an endpoint at which everything goes wrong now and then: what was confirmed is processed, nothing
//! is deleted that was not, and a message group is never out of order.
//!
//! 10,000 messages to each kind of queue; `FAULTS=10` makes it ten times as many.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use queue_core::{Client, Message, Ordering, Receiver};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

mod endpoint;

use endpoint::{Endpoint, Faults};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

const MESSAGES: usize = 10_000;
const KEYS: usize = 500;
/// Tasks that send; each has its own keys, so that order within a key is that of one task.
const SENDERS: usize = 10;
const RECEIVERS: usize = 2;
/// What a lost answer to a poll brought is away for so long.
const LEASE: Duration = Duration::from_secs(6);
/// For each 10,000 messages; a slow machine takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(240);

const FAULTS: Faults = Faults {
    fail_entry: 0.05,
    lose: 0.02,
    throttle: 0.01,
    duplicate: 0.01,
    reorder: 0.0,
    delay: 0.0,
    late_by: Duration::ZERO,
    expire: 0.0,
};

fn times() -> usize {
    std::env::var("FAULTS").ok().and_then(|times| times.parse().ok()).unwrap_or(1).max(1)
}

/// A body says its key and its number within the key.
fn body(index: usize) -> String {
    format!("{} {}", index % KEYS, index / KEYS)
}

/// Sends everything; the bodies that were confirmed.
async fn send(client: &Client, queue: &str, count: usize) -> Result<HashSet<String>, Failure> {
    let sender = client.sender(queue).deadline(PATIENCE).await?;
    let mut tasks = JoinSet::new();
    for task in 0..SENDERS {
        let sender = sender.clone();
        tasks.spawn(async move {
            let mut confirmed = HashSet::new();
            let mut verdicts = FuturesUnordered::new();
            for index in (0..count).filter(|index| index % SENDERS == task) {
                let message = Message::new(body(index)).key((index % KEYS).to_string());
                if let Ok(verdict) = sender.submit(message).await {
                    verdicts.push(async move { verdict.await.map(|_| index) });
                }
            }
            while let Some(verdict) = verdicts.next().await {
                confirmed.extend(verdict.map(body));
            }
            confirmed
        });
    }
    let mut confirmed = HashSet::new();
    while let Some(task) = tasks.join_next().await {
        confirmed.extend(task?);
    }
    Ok(confirmed)
}

/// What receivers processed, in the order in which each key was seen.
#[derive(Default)]
struct Processed {
    bodies: HashSet<String>,
    /// The number that each key is at.
    next: HashMap<usize, usize>,
    repeats: usize,
    /// Whether a key's messages have to come one after the other.
    in_order: bool,
}

impl Processed {
    fn note(&mut self, body: &str) -> Outcome {
        let (key, number) = body.split_once(' ').ok_or("a body of nobody's")?;
        let (key, number) = (key.parse()?, number.parse::<usize>()?);
        let next = self.next.entry(key).or_default();
        if self.in_order && number > *next {
            return Err(format!("out of order: {body} where {next} is next").into());
        }
        *next = (*next).max(number + 1);
        self.repeats += usize::from(!self.bodies.insert(body.to_owned()));
        Ok(())
    }
}

/// Processes until everything confirmed was.
async fn process(
    receivers: Vec<Receiver>,
    in_order: bool,
    sending: tokio::task::JoinHandle<Result<HashSet<String>, Failure>>,
    patience: Duration,
) -> Result<(Processed, HashSet<String>), Failure> {
    let processed = std::sync::Arc::new(parking_lot::Mutex::new(Processed { in_order, ..Processed::default() }));
    let mut working = JoinSet::new();
    for mut receiver in receivers {
        let processed = processed.clone();
        working.spawn(async move {
            loop {
                for delivery in receiver.receive_batch(100).await? {
                    processed.lock().note(delivery.text().unwrap_or_default())?;
                    delivery.ack();
                }
            }
            #[allow(unreachable_code, reason = "it works until it fails or is aborted")]
            Ok::<(), Failure>(())
        });
    }
    let began = Instant::now();
    let deadline = began + patience;
    let confirmed = tokio::select! {
        sent = timeout(patience, sending) => sent.map_err(|_| "the sends had no end")???,
        Some(ended) = working.join_next() => return Err(ended?.err().unwrap_or_else(|| "a worker ended".into())),
    };
    println!("everything was confirmed after {:.1} s", began.elapsed().as_secs_f64());
    while !confirmed.is_subset(&processed.lock().bodies) {
        let left = confirmed.difference(&processed.lock().bodies).count();
        if Instant::now() > deadline {
            return Err(format!("{left} of {} confirmed messages were not processed", confirmed.len()).into());
        }
        // Looks again soon; a worker ends only by failing.
        if let Ok(Some(ended)) = timeout(Duration::from_millis(50), working.join_next()).await {
            return Err(ended?.err().unwrap_or_else(|| "a worker ended".into()));
        }
    }
    working.shutdown().await;
    let processed = std::mem::take(&mut *processed.lock());
    Ok((processed, confirmed))
}

async fn run(queue: &'static str) -> Outcome {
    let count = MESSAGES * times();
    let patience = PATIENCE * u32::try_from(times())?;
    let endpoint = Endpoint::start().await?;
    let client = Client::connect_with(&endpoint.url("&wait_time=1s"), &[queue_sqs::DRIVER]).await?;
    let fifo = queue.ends_with(".fifo");
    let ordering = if fifo { Ordering::PerKey } else { Ordering::None };
    let mut receivers = Vec::new();
    for _ in 0..RECEIVERS {
        let receiver = client.receiver(queue).lease(LEASE).ordering(ordering).discard_dead_letters();
        receivers.push(receiver.await?);
    }
    let began = Instant::now();
    endpoint.set_faults(FAULTS);
    let sending = tokio::spawn({
        let client = client.clone();
        async move { send(&client, queue, count).await }
    });
    let (processed, confirmed) = process(receivers, fifo, sending, patience).await?;
    let counts = endpoint.counts();
    println!(
        "{queue}: {} of {count} confirmed, {} processed, {} repeats, in {:.1} s; {counts:?}",
        confirmed.len(),
        processed.bodies.len(),
        processed.repeats,
        began.elapsed().as_secs_f64(),
    );
    for (fault, least) in [("fail_entry", count / 40), ("lose", 1), ("throttle", 1)] {
        assert!(counts.fault(fault) >= least as u64, "{fault}: {}", counts.fault(fault));
    }
    // A lost answer has a request of ten done once more at most; a duplicate is one. A FIFO queue knows what it was sent
    // twice: only what was not answered within its lease comes again, on a machine that is slow.
    let explained = if fifo { count as u64 / 100 } else { counts.fault("duplicate") + 10 * counts.fault("lose") };
    assert!(processed.repeats as u64 <= explained, "{} repeats, {explained} at most", processed.repeats);
    let unprocessed: Vec<_> = endpoint.deleted(queue).into_iter().filter(|b| !processed.bodies.contains(b)).collect();
    assert!(unprocessed.is_empty(), "deleted and never processed: {unprocessed:?}");
    // Faults are rarer than tries: nothing needs to fail for good.
    assert_eq!(confirmed.len(), count, "sends failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_standard_queue_confirmed_is_processed() -> Outcome {
    run("standard").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_fifo_queue_confirmed_is_processed_and_no_group_is_out_of_order() -> Outcome {
    run("ordered.fifo").await
}
