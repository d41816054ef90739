//! Receiving and answering.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use parking_lot::{Mutex, MutexGuard};
use queue_core::{
    AckReport, AckToken, Answer, Capabilities, CloseReport, Consumer, ConsumerOptions, Error, ErrorKind, Events,
    Message, Outcome, Position, Producer, Received, Result, Settled, Undecodable,
};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};

use crate::address::is_fifo;
use crate::answers::{self, Outbox, Report, Verb};
use crate::broker::{Core, Opened};
use crate::config::Clients;
use crate::convert;
use crate::lease::Leases;
use crate::link::Link;
use crate::poll;
use crate::queues::Queues;

/// Receives from one queue.
pub(crate) struct SqsConsumer {
    capabilities: Arc<Capabilities>,
    shared: Arc<Shared>,
    flush_timeout: Duration,
    _core: Arc<Core>,
}

/// What the consumer and its tasks share.
pub(crate) struct Shared {
    pub(crate) name: Arc<str>,
    pub(crate) url: Arc<str>,
    pub(crate) fifo: bool,
    pub(crate) clients: Clients,
    pub(crate) link: Arc<Link>,
    pub(crate) queues: Arc<Queues>,
    pub(crate) events: Events,
    /// In whole seconds.
    pub(crate) lease: Duration,
    pub(crate) linger: Duration,
    pub(crate) wait_seconds: i32,
    pub(crate) max_polls: usize,
    pub(crate) prefetch: usize,
    pub(crate) prefetch_bytes: usize,
    /// The longest hop of a delay that is longer.
    pub(crate) hop: Duration,
    /// Sends on what comes before it is due; opened by the first.
    pub(crate) copies: OnceLock<Arc<dyn Producer>>,
    pub(crate) core: Weak<Core>,
    pub(crate) state: Mutex<State>,
    /// Wakes the task that polls.
    pub(crate) polls: Notify,
    /// Wakes the task that answers.
    pub(crate) answers: Notify,
    /// Wakes whoever waits for the outcome of answers, or until nothing is being sent on.
    pub(crate) settled: Notify,
}

/// What changes.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) leases: Leases,
    pub(crate) buffer: VecDeque<Buffered>,
    pub(crate) outbox: Outbox,
    /// Messages that polls under way may bring.
    pub(crate) reserved: usize,
    /// Messages that are being sent on because they are not due.
    pub(crate) hopping: usize,
    /// Whether anybody has asked for messages; until then none are fetched: they would be kept from others, and the
    /// broker counts each lease that is lost.
    pub(crate) asked: bool,
    pub(crate) paused: bool,
    pub(crate) stopped: bool,
    pub(crate) polls_ended: bool,
    /// Whether the task that polls waits for room.
    pub(crate) polls_wait: bool,
    /// Set when no answers are taken any more: until when those on their way are repeated.
    pub(crate) closed: Option<Instant>,
    /// What ended the receiver for good.
    pub(crate) over: Option<Error>,
    pub(crate) waker: Option<Waker>,
}

/// A message that was fetched and not handed out.
pub(crate) struct Buffered {
    pub(crate) message: Result<Message, Box<Undecodable>>,
    pub(crate) token: AckToken,
    pub(crate) attempt: u32,
    pub(crate) position: Position,
}

impl fmt::Debug for SqsConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsConsumer").field("address", &self.shared.name).finish_non_exhaustive()
    }
}

impl SqsConsumer {
    pub(crate) fn open(
        core: Arc<Core>,
        name: &str,
        url: Arc<str>,
        capabilities: Capabilities,
        options: &ConsumerOptions,
    ) -> Arc<dyn Consumer> {
        let lease = convert::whole_seconds(options.lease).max(1);
        let shared = Arc::new(Shared {
            name: name.into(),
            url,
            fifo: is_fifo(name),
            clients: core.clients.clone(),
            link: core.link.clone(),
            queues: core.queues.clone(),
            events: options.events.clone(),
            lease: Duration::from_secs(u64::try_from(lease).unwrap_or(1)),
            linger: core.config.answer_linger,
            wait_seconds: core.config.wait_seconds(),
            max_polls: core.config.max_polls,
            prefetch: options.prefetch.max(1),
            prefetch_bytes: options.prefetch_bytes,
            hop: core.config.delay_hops.unwrap_or(convert::MAX_DELAY),
            copies: OnceLock::new(),
            core: Arc::downgrade(&core),
            state: Mutex::default(),
            polls: Notify::new(),
            answers: Notify::new(),
            settled: Notify::new(),
        });
        let weak: Weak<Shared> = Arc::downgrade(&shared);
        core.adopt(weak);
        core.spawn_apart(poll::run(shared.clone()));
        core.spawn_apart(answers::run(shared.clone()));
        let flush_timeout = 2 * core.config.request_timeout;
        Arc::new(Self { capabilities: Arc::new(capabilities), shared, flush_timeout, _core: core })
    }
}

impl Shared {
    /// Wakes those tasks that have something to do now.
    pub(crate) fn wake(&self, mut state: MutexGuard<'_, State>) {
        let answers = state.outbox.wakes();
        let polls = state.polls_wait && state.next_poll(self) > 0;
        state.polls_wait &= !polls;
        drop(state);
        if answers {
            self.answers.notify_one();
        }
        if polls {
            self.polls.notify_one();
        }
    }

    /// Stops fetching and gives back what is buffered; says how much.
    fn begin_stop(&self) -> usize {
        let mut state = self.state.lock();
        state.stopped = true;
        let released = state.release_buffered(Duration::ZERO);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.polls.notify_one();
        self.answers.notify_one();
        released
    }

    /// Gives back what was handed out and not answered as well, but for what is being sent on; says how much.
    fn let_go(&self) -> usize {
        let mut state = self.state.lock();
        state.closed.get_or_insert(Instant::now() + self.lease);
        let tokens = state.leases.tokens();
        let now = Instant::now();
        let mut give_back = |token| state.give_back(token, Duration::ZERO, now, Duration::ZERO, None);
        let count = tokens.into_iter().filter(|token| give_back(*token)).count();
        drop(state);
        self.answers.notify_one();
        count
    }

    /// Whether there is no answer left to send, now and ever.
    pub(crate) fn answers_are_over(&self) -> bool {
        let state = self.state.lock();
        state.closed.is_some() && state.polls_ended && state.hopping == 0 && state.outbox.is_empty()
    }

    /// Waits until every answer so far has its outcome.
    async fn flushed(&self) -> Result<()> {
        let below = self.state.lock().outbox.hurry();
        self.answers.notify_one();
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.outbox.is_settled(below) {
                    return state.outbox.take_refused().map_or(Ok(()), Err);
                }
            }
            settled.await;
        }
    }
}

impl Opened for Shared {
    fn begin_close(&self) {
        self.begin_stop();
        self.let_go();
    }

    fn abandon(&self) {}

    fn left(&self) -> CloseReport {
        CloseReport::default()
    }
}

#[async_trait]
impl Consumer for SqsConsumer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>> {
        let mut state = self.shared.state.lock();
        state.asked = true;
        let (before, now, mut stale) = (into.len(), Instant::now(), false);
        while into.len() - before < max.get() {
            let Some(buffered) = state.buffer.pop_front() else { break };
            // One whose lease ran out is the broker's again.
            let Some(lease) = state.leases.get(buffered.token, now) else {
                stale = true;
                continue;
            };
            lease.buffered = false;
            into.push(Received {
                message: buffered.message,
                token: buffered.token,
                attempt: buffered.attempt,
                lease: Some(lease.expires),
                position: buffered.position,
            });
        }
        if stale {
            state.leases.sweep();
        }
        if into.len() > before {
            self.shared.wake(state);
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = &state.over {
            return Poll::Ready(Err(error.clone()));
        }
        if state.stopped {
            return Poll::Ready(Err(Error::closed("receiver")));
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        self.shared.wake(state);
        Poll::Pending
    }

    fn ack(&self, tokens: &[AckToken]) -> AckReport {
        let mut report = AckReport::default();
        let now = Instant::now();
        let due = now + self.shared.linger;
        let mut state = self.shared.state.lock();
        for (index, token) in tokens.iter().enumerate() {
            match state.leases.take(*token, now) {
                Some(lease) => state.outbox.push(*token, lease.receipt, Verb::Delete, lease.expires, due, None),
                None => report.stale.push(index),
            }
        }
        if !report.stale.is_empty() {
            // Others may have run out with it, and make room.
            state.leases.sweep();
        }
        self.shared.wake(state);
        report
    }

    fn settle(&self, answers: Vec<Answer>) -> Settled {
        let (now, linger) = (Instant::now(), self.shared.linger);
        let mut settled = Settled::default();
        let (report, outcome) = Report::new();
        let mut state = self.shared.state.lock();
        for (index, answer) in answers.into_iter().enumerate() {
            let token = answer.token();
            let Some(lease) = state.leases.get(token, now) else {
                settled.stale.push(index);
                continue;
            };
            let most = lease.last.saturating_duration_since(now);
            let place = report.place(index);
            match answer {
                Answer::Release(_) => drop(state.give_back(token, Duration::ZERO, now, linger, Some(place))),
                Answer::Retry(_, time) | Answer::Extend(_, time) if time > most => place.refuse(
                    Error::new(ErrorKind::InvalidInput, "a message stays away for 12 hours at most, from its receipt")
                        .with_operation("settle")
                        .with_context("limit", format!("{most:?}")),
                ),
                Answer::Retry(_, time) => drop(state.give_back(token, time, now, linger, Some(place))),
                Answer::Extend(_, time) => drop(state.extend(token, time, now, linger, Some(place))),
                _ => place.refuse(Error::unsupported("SQS knows no such answer").with_operation("settle")),
            }
        }
        if !settled.stale.is_empty() {
            state.leases.sweep();
        }
        self.shared.wake(state);
        drop(report);
        settled.pending = Some(pending(outcome));
        settled
    }

    fn holds(&self, token: AckToken) -> bool {
        self.shared.state.lock().leases.get(token, Instant::now()).is_some()
    }

    async fn flush(&self) -> Result<()> {
        let late = || {
            Error::new(ErrorKind::Timeout, "the broker did not confirm every answer in time")
                .with_outcome(Outcome::Unknown)
        };
        let flushed = timeout(self.flush_timeout, self.shared.flushed()).await.unwrap_or_else(|_| Err(late()));
        flushed.map_err(|e| e.with_operation("flush").with_context("address", &self.shared.name))
    }

    fn set_paused(&self, paused: bool) {
        let mut state = self.shared.state.lock();
        state.paused = paused;
        if paused {
            state.release_buffered(self.shared.linger);
        }
        drop(state);
        self.shared.polls.notify_one();
        self.shared.answers.notify_one();
    }

    async fn stop(&self) {
        self.shared.begin_stop();
        // What could not be given back comes again after its lease.
        let _ = timeout(self.flush_timeout, self.shared.flushed()).await;
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        report.released = self.shared.begin_stop();
        let _ = timeout_at(deadline, self.shared.hopped()).await;
        report.unanswered = self.shared.let_go();
        match timeout_at(deadline, self.shared.flushed()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => report.errors.push(error),
            Err(_) => report.errors.push(
                Error::new(ErrorKind::Timeout, "the broker did not confirm every answer in time")
                    .with_operation("close")
                    .with_context("address", &self.shared.name),
            ),
        }
        report
    }
}

/// Waits for the outcomes of the answers of one call.
fn pending(outcome: tokio::sync::oneshot::Receiver<Vec<(usize, Error)>>) -> BoxFuture<'static, Vec<(usize, Error)>> {
    Box::pin(async move { outcome.await.unwrap_or_default() })
}

impl Drop for SqsConsumer {
    fn drop(&mut self) {
        self.shared.begin_close();
    }
}
