//! Messages that flow while a broker sees faults, with a book of what became of each.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use super::case::{CLOSE, CaseResult, Ctx, QUIET, WAIT, body, broken, ensure, open, quiet, within, within_time};
use crate::address::Address;
use crate::client::Client;
use crate::delivery::Delivery;
use crate::error::{Error, Outcome};
use crate::event::EventKind;
use crate::message::Message;
use crate::receiver::Receiver;
use crate::sender::Sender;

/// Messages that are sent at once; the next batch waits for the verdicts.
const BATCH: usize = 50;
/// Messages that are fetched and not answered.
const PREFETCH: usize = 100;
/// Leaves time for faults to come in the middle.
const PACE: Duration = Duration::from_millis(10);
/// Messages that tell that the stream flows.
const FLOWS: usize = 300;
/// How long after a fault a stream may stand still: a broker that starts again, a connection that comes back.
const PATIENCE: Duration = Duration::from_secs(90);
/// Nothing came for so long: nothing is left but what is lost.
const IDLE: Duration = Duration::from_secs(3);
/// One in so many handlers panics.
const PANICS: u32 = 200;
/// More than any message fails here, and a broker counts as failed what it lost.
const MAX_DELIVERIES: u32 = 10_000;

/// What became of the messages.
#[derive(Default)]
struct Book {
    confirmed: Mutex<BTreeSet<String>>,
    /// Sends that failed, which do not count as lost.
    failed: AtomicUsize,
    /// How often each was processed; written before the ack.
    processed: Mutex<HashMap<String, u32>>,
    panics: AtomicUsize,
    losses: AtomicUsize,
}

/// A stream of messages through one queue: a sender, a receiver, each on a client of its own.
pub(super) struct Load {
    queue: Address,
    book: Arc<Book>,
    sending: Arc<AtomicBool>,
    sender: JoinHandle<CaseResult>,
    receiver: JoinHandle<CaseResult>,
    /// That of the sender, that of the receiver.
    clients: [Client; 2],
    /// Ends with this.
    _watchers: JoinSet<()>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.sender.abort();
        self.receiver.abort();
    }
}

impl Load {
    /// Starts a stream that flows.
    pub(super) async fn start(ctx: &Ctx) -> CaseResult<Self> {
        Self::between(ctx, ctx.another().await?, ctx.another().await?).await
    }

    /// Starts a stream that flows from one client to another.
    pub(super) async fn between(ctx: &Ctx, from: Client, to: Client) -> CaseResult<Self> {
        let queue = ctx.queue()?;
        let book = Arc::new(Book::default());
        let mut watchers = JoinSet::new();
        for client in [&from, &to] {
            let (mut events, book) = (client.events(), book.clone());
            watchers.spawn(async move {
                while let Some(event) = events.next().await {
                    book.losses.fetch_add(usize::from(event.kind == EventKind::Disconnected), Ordering::Relaxed);
                }
            });
        }
        let sender = within("a sender to open", async { from.sender(&queue).deadline(PATIENCE).await }).await??;
        let receiver = open(ctx.receiver_of(&to, &queue).prefetch(PREFETCH).max_deliveries(MAX_DELIVERIES)).await?;
        let sending = Arc::new(AtomicBool::new(true));
        let load = Self {
            sender: tokio::spawn(send(sender, book.clone(), sending.clone())),
            receiver: tokio::spawn(receive(receiver, book.clone(), sending.clone(), ctx.rng())),
            queue,
            book,
            sending,
            clients: [from, to],
            _watchers: watchers,
        };
        load.flows().await?;
        Ok(load)
    }

    /// Waits until messages flow (again).
    pub(super) async fn flows(&self) -> CaseResult {
        let before = self.book.processed.lock().len();
        let end = Instant::now() + PATIENCE;
        while self.book.processed.lock().len() < before + FLOWS {
            if self.sender.is_finished() || self.receiver.is_finished() {
                break; // finish says why
            }
            ensure!(
                Instant::now() < end,
                "within {PATIENCE:?} {} messages came of {FLOWS}; {} are confirmed, {before} processed, {} sends failed; \
                 the sender's health: {:?}, the receiver's: {:?}",
                self.book.processed.lock().len() - before,
                self.book.confirmed.lock().len(),
                self.book.failed.load(Ordering::Relaxed),
                self.clients[0].health(),
                self.clients[1].health(),
            );
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Ends the stream: everything confirmed was processed, nothing is left, and what came more than once is explained
    /// by the connections that were lost.
    pub(super) async fn finish(mut self, ctx: &Ctx, what: &str, faults: usize) -> CaseResult {
        self.flows().await?;
        self.sending.store(false, Ordering::Release);
        within_time(PATIENCE + WAIT, "the sender to end", &mut self.sender).await?.map_err(gone)??;
        within_time(PATIENCE, "the receiver to end", &mut self.receiver).await?.map_err(gone)??;
        let (confirmed, processed) =
            (std::mem::take(&mut *self.book.confirmed.lock()), std::mem::take(&mut *self.book.processed.lock()));
        let missing: Vec<_> = confirmed.iter().filter(|name| !processed.contains_key(*name)).collect();
        ensure!(
            missing.is_empty(),
            "{} of {} confirmed messages never came, such as {:?}",
            missing.len(),
            confirmed.len(),
            missing.first()
        );
        // Acked is only what was processed, and now all is acked.
        let mut rest = ctx.open(&self.queue).await?;
        quiet(&mut rest, QUIET).await?;
        if ctx.probe.receiver.dead_letter {
            let dead = self.queue.dead_letter();
            let mut dead = open(ctx.client.receiver(&dead).discard_dead_letters()).await?;
            quiet(&mut dead, QUIET).await?;
        }
        let repeats: u32 = processed.values().map(|times| times - 1).sum();
        let losses = self.book.losses.load(Ordering::Relaxed).max(faults);
        let explained = losses * (PREFETCH + BATCH);
        println!(
            "{}: {faults} times {what}: {} confirmed, all processed; {} sends failed, {} handlers panicked; {losses} \
             connections lost, {repeats} repeated (at most {explained}: what a receiver holds and a sender has in flight \
             when a connection is lost)",
            ctx.harness.name(),
            confirmed.len(),
            self.book.failed.load(Ordering::Relaxed),
            self.book.panics.load(Ordering::Relaxed),
        );
        ensure!(
            usize::try_from(repeats).is_ok_and(|repeats| repeats <= explained),
            "{repeats} came again, where {losses} lost connections explain {explained}"
        );
        Ok(())
    }
}

fn gone(error: tokio::task::JoinError) -> super::case::Failure {
    broken(format!("a task of the stream: {error}"))
}

async fn send(sender: Sender, book: Arc<Book>, sending: Arc<AtomicBool>) -> CaseResult {
    let mut next = 0_usize;
    while sending.load(Ordering::Acquire) {
        let names: Vec<_> = (next..next + BATCH).map(|n| format!("m{n}")).collect();
        next += BATCH;
        let sent = sender.send_batch(names.iter().map(|name| Message::new(name.clone()).key(name.clone()))).await;
        let failures = sent.err().map(|error| error.failures()).unwrap_or_default();
        for (_, error) in &failures {
            ensure!(error.is_retryable() || error.outcome() == Outcome::Unknown, "a send failed with {error:?}");
        }
        book.failed.fetch_add(failures.len(), Ordering::Relaxed);
        let failed: BTreeSet<_> = failures.iter().map(|(index, _)| *index).collect();
        let confirmed = names.into_iter().enumerate().filter(|(index, _)| !failed.contains(index));
        book.confirmed.lock().extend(confirmed.map(|(_, name)| name));
        sleep(PACE).await;
    }
    let report = sender.close(CLOSE).await;
    ensure!(report.unconfirmed == 0, "the sender's close: {report:?}");
    Ok(())
}

/// Hands messages to handlers until nothing is sent and nothing comes any more.
async fn receive(
    mut receiver: Receiver,
    book: Arc<Book>,
    sending: Arc<AtomicBool>,
    mut rng: fastrand::Rng,
) -> CaseResult {
    let mut handlers = JoinSet::new();
    loop {
        match timeout(IDLE, receiver.receive()).await {
            Ok(Ok(delivery)) => {
                let (panics, pause) = (rng.u32(..PANICS) == 0, rng.u64(..20));
                handlers.spawn(handle(delivery, book.clone(), panics, Duration::from_millis(pause)));
            }
            Ok(Err(error)) => return Err(stopped(&error)),
            Err(_) if !sending.load(Ordering::Acquire) && handlers.is_empty() => break,
            Err(_) => {}
        }
        while handlers.try_join_next().is_some() {}
    }
    let report = within("the receiver's close", receiver.close(CLOSE)).await?;
    // Its errors may tell of connections that were lost.
    ensure!(report.unanswered == 0, "the receiver's close: {report:?}");
    Ok(())
}

fn stopped(error: &Error) -> super::case::Failure {
    broken(format!("the receiver gave up: {error:?}"))
}

/// Takes a moment, so that acks come out of order.
async fn handle(delivery: Delivery, book: Arc<Book>, panics: bool, pause: Duration) {
    sleep(pause).await;
    if panics {
        book.panics.fetch_add(1, Ordering::Relaxed);
        // Unwinds as a panic does, without the noise on the terminal.
        std::panic::resume_unwind(Box::new("a handler that panics"));
    }
    *book.processed.lock().entry(body(delivery.message())).or_default() += 1;
    delivery.ack();
}
