//! A run: fetches the pages that are not complete, queues their records, and waits until workers have aggregated them.

use std::convert::Infallible;
use std::fs::{File, TryLockError};
use std::future::pending;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyqueue::worker::{Report, signal};
use anyqueue::{Client, Sender};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{interval, sleep};

use crate::Outcome;
use crate::output::{self, Written};
use crate::progress::Progress;
use crate::record::Place;
use crate::settings::{Settings, close};
use crate::source::Source;
use crate::state::{LOOK, Open, State};
use crate::work::Workers;

/// Pages that are fetched at a time.
const AT_A_TIME: usize = 16;
/// How long a broker may be away until records cannot be queued.
const DEADLINE: Duration = Duration::from_secs(300);
/// Longer than a broker keeps messages for a worker that is gone.
const STALL: Duration = Duration::from_secs(180);
/// Pages that could not be fetched and are told.
const TOLD: usize = 10;

/// What fetches.
struct Run {
    source: Source,
    state: Arc<State>,
    sender: Sender,
}

pub(crate) async fn run(source: &str, settings: &Settings) -> Outcome {
    let source = Source::new(source)?;
    let _alone = alone(&settings.state)?;
    output::prepare(&settings.out)?;
    let client = settings.connect().await?;
    let ran = go(source, settings, &client).await;
    close(client).await;
    ran.map_err(|error| match error.downcast::<sqlx::Error>() {
        Ok(error) => format!("STATE '{}': {error}", settings.state.display()).into(),
        Err(error) => error,
    })
}

/// Two runs of one state would take the queued records of the other for their own. Ends with the process, however that ends.
fn alone(state: &Path) -> Outcome<File> {
    let path = state.with_added_extension("lock");
    let lock = File::create(&path).map_err(|error| format!("STATE '{}': {error}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(format!("STATE '{}' has another run at work", state.display()).into()),
        Err(TryLockError::Error(error)) => Err(format!("STATE '{}': {error}", path.display()).into()),
    }
}

async fn go(source: Source, settings: &Settings, client: &Client) -> Outcome {
    let begun = Instant::now();
    let names = source.pages().await?;
    let state = Arc::new(State::open(&settings.state).await?);
    let open = state.begin(&settings.state, &source.name(), &names).await?;
    let before = state.standing().await?;
    let sender = client.sender(settings.queue(&state.job)).deadline(DEADLINE).await?;
    let mut workers = Workers::start(client, settings, state.clone(), pending()).await?;
    let mut progress = Progress::new(&before)?;
    let run = Arc::new(Run { source, state: state.clone(), sender });
    let failed = tokio::select! {
        failed = run.all(open) => failed,
        Err(stuck) = watch(&state, client, &mut progress, before.done) => Err(stuck),
        ended = &mut workers.report => Err(why(ended)),
        () = signal() => Err("told to end before it was done: run again to go on".into()),
    };
    workers.control.stop();
    if !workers.report.is_finished() {
        let _ = workers.report.await;
    }
    let failed = failed?;
    let now = state.standing().await?;
    progress.show(&now);
    drop(progress);
    if !failed.is_empty() {
        failed.iter().take(TOLD).for_each(|why| eprintln!("{why}"));
        let missing = format!("{} of {} pages are missing, so there is no result", failed.len(), names.len());
        return Err(format!("{missing}: run again to fetch them").into());
    }
    let Written { stations, bad } = output::write(&state, &settings.out, now.records).await?;
    let (new, took) = (now.done - before.done, begun.elapsed());
    println!(
        "{} pages, {} records of {stations} stations, {bad} bad; {new} of them in {:.1} s, {} records/s",
        now.pages,
        now.records,
        took.as_secs_f64(),
        u128::from(new) * 1000 / took.as_millis().max(1)
    );
    Ok(())
}

/// Why workers ended that nobody told to.
fn why(ended: Result<Report, JoinError>) -> Box<dyn std::error::Error + Send + Sync> {
    match ended.map(|report| report.errors.into_iter().next()) {
        Ok(Some(error)) => error.into(),
        Ok(None) => "the workers have ended".into(),
        Err(error) => error.into(),
    }
}

/// Shows how far it is, and ends only if it does not go on.
async fn watch(state: &State, client: &Client, progress: &mut Progress, mut done: u64) -> Outcome<Infallible> {
    let mut moved = Instant::now();
    let mut every = interval(progress.every());
    loop {
        every.tick().await;
        state.tick().await?;
        let now = state.standing().await?;
        progress.show(&now);
        let missing = state.missing().await?;
        // A broker that is away comes back.
        if now.done != done || missing == 0 || !client.health().is_ready() {
            (done, moved) = (now.done, Instant::now());
        } else if moved.elapsed() > STALL {
            let seconds = STALL.as_secs();
            return Err(
                format!("{missing} queued records did not come in {seconds} s: run again to queue them anew").into()
            );
        }
    }
}

impl Run {
    /// Queues the records of these pages, and waits until they are aggregated; what could not be fetched.
    async fn all(self: Arc<Self>, open: Vec<Open>) -> Outcome<Vec<String>> {
        let mut failed = Vec::new();
        let mut tasks = JoinSet::new();
        for open in open {
            if tasks.len() == AT_A_TIME {
                failed.extend(tasks.join_next().await.transpose()?.flatten());
            }
            tasks.spawn(self.clone().told(open));
        }
        while let Some(why) = tasks.join_next().await {
            failed.extend(why?);
        }
        while self.state.missing().await? > 0 {
            sleep(LOOK).await;
        }
        Ok(failed)
    }

    /// Why a page could not be fetched, if so.
    async fn told(self: Arc<Self>, open: Open) -> Option<String> {
        self.page(&open).await.err().map(|why| format!("{}: {why}", open.name))
    }

    async fn page(&self, open: &Open) -> Outcome {
        let fetched = self.source.page(&open.name).await?;
        let seen = self.state.expect(open.page, &fetched).await?;
        let missing = fetched.records.into_iter().zip(0..).filter(|(_, record)| !seen.has(*record));
        let message = |(line, record)| Place { page: open.page, record }.message(&self.state.job, line);
        if let Err(error) = self.sender.send_batch(missing.map(message)).await {
            self.state.give_up(open.page).await?;
            return Err(format!("{} of its records could not be queued: {error}", error.failures().len()).into());
        }
        Ok(())
    }
}
