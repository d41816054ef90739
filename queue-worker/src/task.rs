//! One message at work: what answers it, whatever becomes of its handler.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use queue_core::{Answered, Delivery, Processing, Receiver, Ticket};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::breaker::{Blame, Circuit, Pass};
use crate::control::State;
use crate::failure::{Failure, FailureKind};
use crate::handling::{Rest, note};
use crate::job::Job;
use crate::limit::Limit;
use crate::reply::{Asker, IntoReply, Reply};
use crate::retry::{Retry, RetryPolicy};

/// What all handlers of a worker share.
pub(crate) struct Shared {
    pub(crate) state: Arc<State>,
    pub(crate) retry: Box<dyn RetryPolicy>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) circuit: Option<Mutex<Circuit>>,
    /// The breaker may stand otherwise.
    pub(crate) circuit_moved: Notify,
    pub(crate) adaptive: Option<Mutex<Limit>>,
}

/// How long a message waits whose handler says that something is away, without a breaker.
const AWAY: Duration = Duration::from_secs(1);

impl Shared {
    /// Tells the breaker, if there is one.
    fn tell<T>(&self, what: impl FnOnce(&mut Circuit) -> T) -> Option<T> {
        let mut circuit = self.circuit.as_ref()?.lock();
        let told = what(&mut circuit);
        self.state.is_open.store(circuit.is_open(), Ordering::Relaxed);
        drop(circuit);
        self.circuit_moved.notify_one();
        Some(told)
    }

    /// Waits until the breaker lets a message through.
    pub(crate) async fn passed(&self) {
        let Some(circuit) = &self.circuit else { return };
        loop {
            let pass = circuit.lock().pass();
            match pass {
                Pass::Yes => return,
                Pass::NotBefore(at) => sleep_until(at).await,
                Pass::NotNow => self.circuit_moved.notified().await,
            }
        }
    }

    pub(crate) fn panicked(&self, panic: Box<dyn Any + Send>) -> Failure {
        self.state.counters.panicked.add();
        let failure = Failure::panicked(&*panic);
        // What a panic carries may panic when it is dropped; what that carries is left alone.
        if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
            std::mem::forget(another);
        }
        tracing::error!(%failure, "the message is tried again");
        failure
    }
}

/// A place for a handler that is taken; given back when dropped.
pub(crate) struct Place(Arc<Shared>);

impl Place {
    pub(crate) fn take(shared: &Arc<Shared>) -> Self {
        shared.state.slots.take();
        Self(shared.clone())
    }

    /// How long the handler may take.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.0.deadline
    }

    /// Of a handler that took longer.
    pub(crate) fn late(&self) -> Failure {
        let deadline = self.0.deadline.unwrap_or_default();
        Failure::temporary(format!("the handler took longer than {deadline:?}"))
    }

    pub(crate) fn panicked(&self, panic: Box<dyn Any + Send>) -> Failure {
        self.0.panicked(panic)
    }

    /// When the handler began, if somebody wants to know.
    pub(crate) fn began(&self) -> Option<Instant> {
        self.0.adaptive.is_some().then(Instant::now)
    }

    /// The handler ended: the limit follows.
    pub(crate) fn ended<T>(&self, began: Option<Instant>, result: &Result<T, Failure>) {
        let (Some(adaptive), Some(began)) = (&self.0.adaptive, began) else { return };
        let failed = result.as_ref().is_err_and(|failure| failure.kind() != FailureKind::Permanent);
        let slots = &self.0.state.slots;
        if let Some(limit) = adaptive.lock().ended(began.elapsed(), failed, slots.running()) {
            slots.set_limit(limit);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state.slots.give_back();
    }
}

/// A message that waits for its answer. Dropped without one, it is given back.
pub(crate) struct Work {
    shared: Arc<Shared>,
    ticket: Option<Ticket>,
    /// Whoever waits for a reply.
    asker: Option<Box<Asker>>,
    /// What it comes to once whoever asks was told so, or when there is no more time for that.
    decided: Option<Box<(Failure, Next)>>,
    attempt: u32,
    is_last_attempt: bool,
    /// Of the breaker, until it is told how the try ended.
    try_number: Cell<Option<u32>>,
    /// Whether something of the application's runs: if it panics, the message counts as dropped.
    guarded: bool,
}

impl Work {
    pub(crate) fn take(shared: &Arc<Shared>, receiver: &Receiver, delivery: Delivery) -> (Job, Self) {
        let (job, ticket) = Job::take(delivery);
        let asker = Asker::of(&job, || receiver.replier());
        let (attempt, is_last_attempt) = (job.attempt(), job.is_last_attempt());
        let try_number = Cell::new(shared.circuit.as_ref().map(|circuit| circuit.lock().begin()));
        let (shared, ticket) = (shared.clone(), Some(ticket));
        (job, Self { shared, ticket, asker, decided: None, attempt, is_last_attempt, try_number, guarded: false })
    }

    /// Answers by the handler's result; what is returned does so, where somebody has to be replied to before.
    pub(crate) fn finish(mut self, result: Result<impl IntoReply, Failure>, processing: &mut Processing) -> Rest {
        let result = self.guarded(|_| result.and_then(IntoReply::into_reply));
        note(processing, &result);
        let Some(asker) = self.asker.take() else {
            self.answer(result.map(drop));
            return None;
        };
        Some(self.reply(asker, result).boxed())
    }

    /// Runs what is the application's; if it panics, the message counts as dropped, and not as given back.
    fn guarded<T>(&mut self, what: impl FnOnce(&Self) -> T) -> T {
        self.guarded = true;
        let done = what(self);
        self.guarded = false;
        done
    }

    /// Tells the breaker how the try ended, if there is one and it was not told.
    fn tell<T>(&self, how: impl FnOnce(&mut Circuit, u32) -> T) -> Option<T> {
        let number = self.try_number.take()?;
        self.shared.tell(|circuit| how(circuit, number))
    }

    async fn reply(mut self, asker: Box<Asker>, result: Result<Reply, Failure>) {
        let failure = match result {
            Ok(reply) => {
                // The handler has done its part: a reply that cannot be sent is no fault of what it needs.
                self.tell(Circuit::succeeded);
                match asker.reply(reply).await {
                    Ok(()) => return self.answer(Ok(())),
                    Err(failure) => failure,
                }
            }
            Err(failure) => failure,
        };
        let (next, why) = self.guarded(|work| (work.decide(&failure), Asker::why(&failure)));
        let (is_permanent, is_final) = (failure.kind() == FailureKind::Permanent, next.is_final(self.is_last_attempt));
        self.decided = Some(Box::new((failure, next)));
        if is_final {
            asker.tell(is_permanent, &why).await;
        }
    }

    /// Answers by the handler's result.
    pub(crate) fn answer(mut self, result: Result<(), Failure>) {
        match result {
            Ok(()) => {
                let Some(ticket) = self.ticket.take() else { return };
                self.tell(Circuit::succeeded);
                self.shared.state.counters.processed.add();
                self.note(ticket.ack());
            }
            Err(failure) => {
                let next = self.guarded(|work| work.decide(&failure));
                self.decided = Some(Box::new((failure, next)));
            }
        }
    }

    fn note(&self, answered: Answered) {
        if answered == Answered::LeaseLost {
            self.shared.state.counters.lost.add();
        }
    }

    /// What becomes of a message that failed; counted.
    fn decide(&self, failure: &Failure) -> Next {
        let counters = &self.shared.state.counters;
        counters.failed.add();
        let unavailable = failure.kind() == FailureKind::Unavailable;
        if failure.kind() == FailureKind::Permanent {
            tracing::debug!(error = %failure, attempt = self.attempt, "the handler failed for good");
            counters.dead_lettered.add();
            self.tell(Circuit::ended);
            return Next::Tried(Retry::DeadLetter);
        }
        tracing::debug!(error = %failure, attempt = self.attempt, "the handler failed");
        match self.tell(|circuit, number| circuit.failed(number, unavailable)) {
            Some(Blame::None(until)) => {
                counters.postponed.add();
                return Next::Postponed(until.saturating_duration_since(Instant::now()));
            }
            None if unavailable => {
                counters.postponed.add();
                return Next::Postponed(AWAY);
            }
            Some(Blame::Own) | None => {}
        }
        let retry = match failure.kind() {
            FailureKind::RetryAfter(delay) => Retry::After(delay),
            _ => self.shared.retry.retry(self.attempt, failure),
        };
        let next = Next::Tried(retry);
        if next.is_final(self.is_last_attempt) {
            counters.dead_lettered.add();
        }
        next
    }

    fn fail(&self, ticket: Ticket, failure: Failure, next: Next) {
        self.note(match next {
            Next::Postponed(delay) => ticket.postpone(delay),
            Next::Tried(Retry::Default) => ticket.fail(failure.into_error(), None),
            Next::Tried(Retry::After(delay)) => ticket.fail(failure.into_error(), Some(delay)),
            Next::Tried(Retry::DeadLetter) => ticket.reject(failure.into_error()),
        });
    }
}

/// What becomes of a message that failed.
enum Next {
    /// It is not to blame, and waits for so long.
    Postponed(Duration),
    Tried(Retry),
}

impl Next {
    /// Whether it is a dead letter.
    fn is_final(&self, is_last_attempt: bool) -> bool {
        match self {
            Self::Postponed(_) => false,
            Self::Tried(retry) => is_last_attempt || *retry == Retry::DeadLetter,
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            match self.decided.take() {
                Some(decided) => {
                    let (failure, next) = *decided;
                    self.fail(ticket, failure, next);
                }
                None if self.guarded => drop(ticket),
                None => {
                    // Before the answer, by which somebody may look.
                    self.shared.state.counters.released.add();
                    self.tell(Circuit::ended);
                    ticket.release();
                }
            }
        }
        // What panicked has ended too.
        self.tell(Circuit::ended);
    }
}
