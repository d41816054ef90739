//! Workers: take records in batches, and answer them when they are aggregated.

use std::sync::Arc;
use std::time::Duration;

use anyqueue::worker::{BatchHandler, Batches, Control, Failure, Job, Report, Worker, signal};
use anyqueue::{Client, Error, ErrorKind};
use tokio::task::JoinHandle;

use crate::Outcome;
use crate::record::{Place, parse};
use crate::settings::{Settings, Wrong, close};
use crate::state::State;
use crate::totals::Entry;

/// Messages of a batch, which is one transaction.
const BATCH: usize = 1000;
/// How long a batch waits to be full.
const FULL: Duration = Duration::from_millis(20);
/// How long the messages of a worker that is gone stay with it, where the broker cannot see that it is.
const LEASE: Duration = Duration::from_secs(15);
/// A worker that is killed did not fail because of its messages, and SQS counts what is given back.
const DELIVERIES: u32 = 100;

/// The workers of this process.
#[derive(Debug)]
pub(crate) struct Workers {
    pub(crate) control: Control,
    pub(crate) report: JoinHandle<Report>,
}

impl Workers {
    pub(crate) async fn start(
        client: &Client,
        settings: &Settings,
        state: Arc<State>,
        end: impl Future<Output = ()> + Send + 'static,
    ) -> Outcome<Self> {
        let receiver = client
            .receiver(settings.queue(&state.job))
            // The next batch comes while the workers are at theirs.
            .prefetch(BATCH * (settings.workers + 1))
            .max_deliveries(DELIVERIES)
            .lease(LEASE)
            .await?;
        let worker = Worker::new(receiver).concurrency(settings.workers).until(end);
        let control = worker.control();
        let report = tokio::spawn(worker.serve_batches(Batches::of(BATCH).within(FULL), handler(state)));
        Ok(Self { control, report })
    }
}

/// Each message of a batch has its own answer: what cannot be read is a dead letter.
fn handler(state: Arc<State>) -> impl BatchHandler {
    move |batch: Vec<Job>| {
        let state = state.clone();
        async move {
            let read = |job: &Job| Ok(Entry { place: Place::of(job, &state.job)?, read: parse(job.payload()) });
            let entries: Vec<Result<Entry, String>> = batch.iter().map(read).collect();
            let added = state.add(&entries.iter().flatten().collect::<Vec<_>>()).await;
            if let Err(error) = &added {
                eprintln!("{} records wait, they cannot be added: {error}", batch.len());
            }
            let answer = |entry: Result<Entry, String>| match (&added, entry) {
                (Err(error), _) => Err(Failure::unavailable(error.to_string())),
                (Ok(()), Ok(Entry { read: Ok(_), .. })) => Ok(()),
                (Ok(()), Ok(Entry { read: Err(why), .. }) | Err(why)) => Err(Failure::permanent(why)),
            };
            entries.into_iter().map(answer).collect::<Vec<_>>()
        }
    }
}

/// Works for the runs of other processes until it is told to end.
pub(crate) async fn work(settings: &Settings) -> Outcome {
    if settings.url.to_ascii_lowercase().starts_with("memory:") {
        let right = "such as amqp://guest:guest@localhost:5672";
        return Err(Wrong::error(format!(
            "QUEUE_URL is '{}', which other processes do not reach: work needs a broker, {right}",
            settings.url
        )));
    }
    let client = settings.connect().await?;
    let state = Arc::new(State::of_run(&settings.state).await?);
    let queue = settings.queue(&state.job);
    let workers = Workers::start(&client, settings, state, signal()).await?;
    println!("worker {} is ready, at {queue}", std::process::id());
    let report = workers.report.await?;
    close(client).await;
    let counts = report.counts;
    println!("{} records, {} dead letters", counts.processed, counts.dead_lettered);
    // An answer that is lost brings its message again, which adds nothing.
    let matters = |error: &Error| !error.is_retryable() && error.kind() != ErrorKind::LeaseLost;
    match report.errors.into_iter().find(matters) {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}
