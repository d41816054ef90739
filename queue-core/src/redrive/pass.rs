//! One pass over dead letters.
//!
//! Every dead letter that is met stays unanswered until its copy is confirmed, or until the end, so that none is met twice.
//! What dies again meanwhile is behind those that were there at the start: the pass ends with their number where the broker
//! tells it exactly. Where it does not, what comes last is put back only after nothing came any more.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at};

use super::{Filter, Redriven};
use crate::address::Source;
use crate::consumer::{AckToken, Answer, Consumer, Received};
use crate::dead_letter;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::outbox::Owned;
use crate::producer::Receipt;
use crate::verdict::Verdict;

/// Most dead letters that are held at a time, and their bytes.
pub(super) const MOST_UNANSWERED: usize = 10_000;
pub(super) const MOST_BYTES: usize = 64 << 20;
/// Most that are fetched at once, and most copies in flight.
const MOST_AT_ONCE: usize = 256;
/// How long the first may take where the broker says that there is one: a group of Kafka has to be joined.
const FIRST: Duration = Duration::from_secs(30);
/// How long the end may take.
const END: Duration = Duration::from_secs(30);

/// How many dead letters there are at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Exactly(u64),
    About(u64),
}

impl Expected {
    fn count(self) -> u64 {
        match self {
            Self::Exactly(count) | Self::About(count) => count,
        }
    }
}

/// Which dead letters are put back.
pub(super) struct Wanted {
    pub(super) source: Source,
    /// The group that copies name.
    pub(super) group: Option<String>,
    pub(super) filter: Option<Filter>,
    pub(super) limit: u64,
}

pub(super) struct Pass {
    consumer: Arc<dyn Consumer>,
    outbox: Owned,
    wanted: Wanted,
    expected: Expected,
    lease: Duration,
    idle: Duration,
    /// More is fetched.
    open: bool,
    looked_at: u64,
    chosen: u64,
    /// Those that were met and not acknowledged, with their sizes.
    unanswered: HashMap<AckToken, usize>,
    bytes: usize,
    /// Copies that are not sent yet.
    waiting: VecDeque<(AckToken, Message)>,
    sending: FuturesUnordered<BoxFuture<'static, (AckToken, Result<Receipt>)>>,
    report: Redriven,
}

impl Pass {
    pub(super) fn new(
        consumer: Arc<dyn Consumer>,
        outbox: Owned,
        wanted: Wanted,
        expected: Expected,
        lease: Duration,
        idle: Duration,
    ) -> Self {
        Self {
            consumer,
            outbox,
            wanted,
            expected,
            lease,
            idle,
            open: true,
            looked_at: 0,
            chosen: 0,
            unanswered: HashMap::new(),
            bytes: 0,
            waiting: VecDeque::new(),
            sending: FuturesUnordered::new(),
            report: Redriven::default(),
        }
    }

    pub(super) async fn run(mut self) -> Redriven {
        self.look().await;
        self.end().await;
        self.report
    }

    async fn look(&mut self) {
        let consumer = self.consumer.clone();
        let leased = consumer.capabilities().max_lease.is_some();
        let half = (self.lease / 2).max(Duration::from_millis(1));
        let mut renewal = interval_at(crate::memory::far(Instant::now(), half), half);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut received = Vec::new();
        let idle = sleep_until(self.idle_until());
        tokio::pin!(idle);
        loop {
            self.send_waiting().await;
            if self.sending.is_empty() && self.open && self.is_full() {
                // Nothing is under way that would make room.
                self.stop(self.full());
                continue;
            }
            if self.sending.is_empty() && !self.open {
                return;
            }
            let room = self.room();
            let fetches = self.open && !self.is_full() && self.sending.len() < MOST_AT_ONCE;
            tokio::select! {
                biased;
                _ = renewal.tick(), if leased => self.renew(),
                Some((token, sent)) = self.sending.next() => self.sent(token, sent),
                fetched = poll_fn(|cx| consumer.poll_receive(cx, room, &mut received)), if fetches => match fetched {
                    Ok(()) => {
                        received.drain(..).for_each(|item| self.meet(item));
                        self.close_when_done();
                    }
                    Err(error) => self.stop(error),
                },
                () = &mut idle, if self.open && self.sending.is_empty() => self.dried_up(),
                else => {}
            }
            idle.as_mut().reset(self.idle_until());
        }
    }

    fn idle_until(&self) -> Instant {
        let is_first = self.looked_at == 0 && self.expected.count() > 0;
        crate::memory::far(Instant::now(), if is_first { self.idle.max(FIRST) } else { self.idle })
    }

    /// What may be fetched at once.
    fn room(&self) -> NonZeroUsize {
        let left = usize::try_from(self.wanted.limit.saturating_sub(self.chosen)).unwrap_or(usize::MAX);
        let room = MOST_AT_ONCE.min(left).min(MOST_UNANSWERED.saturating_sub(self.unanswered.len()));
        NonZeroUsize::new(room).unwrap_or(NonZeroUsize::MIN)
    }

    /// Whether all that the broker told of have been met: more may have died since.
    fn is_past_expected(&self) -> bool {
        self.looked_at >= self.expected.count()
    }

    /// Looks at a dead letter, which is held from now on.
    fn meet(&mut self, item: Received) {
        let Received { message, token, .. } = item;
        let size = message.as_ref().map_or_else(|undecodable| undecodable.raw.len(), Message::size);
        self.unanswered.insert(token, size);
        self.bytes += size;
        self.looked_at += 1;
        let message = match message {
            Ok(message) => message,
            Err(undecodable) => return self.report.failed.push(undecodable.error),
        };
        if !dead_letter::is_of(&message, &self.wanted.source) {
            self.report.others += 1;
        } else if self.wanted.filter.as_mut().is_some_and(|filter| !filter(&message)) {
            self.report.kept += 1;
        } else {
            self.chosen += 1;
            self.waiting.push_back((token, dead_letter::put_back(&message, self.wanted.group.as_deref())));
        }
    }

    fn close_when_done(&mut self) {
        let is_exact = matches!(self.expected, Expected::Exactly(_));
        if self.chosen >= self.wanted.limit || is_exact && self.is_past_expected() {
            self.open = false;
        }
    }

    fn is_full(&self) -> bool {
        self.unanswered.len() >= MOST_UNANSWERED || self.bytes >= MOST_BYTES
    }

    fn full(&self) -> Error {
        let why = "so many dead letters are held that those behind them are not looked at";
        Error::new(ErrorKind::TooLarge, why)
            .with_context("limit", format!("{MOST_UNANSWERED} messages, {MOST_BYTES} bytes"))
            .with_context("actual", format!("{} messages, {} bytes", self.unanswered.len(), self.bytes))
    }

    /// Nothing came for a while.
    fn dried_up(&mut self) {
        self.open = false;
        if self.looked_at == 0 && self.expected.count() > 0 {
            let error = Error::new(ErrorKind::Timeout, "the broker tells of dead letters, and none came");
            self.report.stopped = Some(error.with_context("ready", self.expected.count()));
        }
    }

    /// Sends copies while there is room; what may have died since the start waits until nothing more comes.
    async fn send_waiting(&mut self) {
        while self.sending.len() < MOST_AT_ONCE && (!self.open || !self.is_past_expected()) {
            let Some((token, copy)) = self.waiting.pop_front() else { return };
            if !self.consumer.holds(token) {
                self.forget(token);
                continue;
            }
            match self.outbox.submit(copy).await {
                Ok(slot) => self.sending.push(Box::pin(async move { (token, Verdict(slot).await) })),
                Err(error) => self.failed(error),
            }
        }
    }

    fn sent(&mut self, token: AckToken, sent: Result<Receipt>) {
        match sent {
            Ok(_) => {
                self.consumer.ack(&[token]);
                self.forget(token);
                self.report.moved += 1;
            }
            Err(error) => self.failed(error),
        }
    }

    fn forget(&mut self, token: AckToken) {
        self.bytes -= self.unanswered.remove(&token).unwrap_or(0);
    }

    /// A copy could not be sent: its dead letter stays.
    fn failed(&mut self, error: Error) {
        use ErrorKind::{Codec, InvalidInput, Rejected, TooLarge, Unsupported};
        // What is wrong with one message says nothing of the next.
        if !matches!(error.kind(), Codec | InvalidInput | Rejected | TooLarge | Unsupported) {
            self.stop(error.clone());
            self.waiting.clear();
        }
        self.report.failed.push(error);
    }

    fn stop(&mut self, error: Error) {
        self.open = false;
        self.report.stopped.get_or_insert(error);
    }

    fn renew(&self) {
        let held = self.unanswered.keys().map(|token| Answer::Extend(*token, self.lease)).collect();
        // Refused, the dead letter is the broker's again and stays.
        if let Some(pending) = self.consumer.settle(held).pending {
            tokio::spawn(pending);
        }
    }

    /// Waits until the broker has every acknowledgement, and gives back what stays.
    async fn end(&mut self) {
        let deadline = Instant::now() + END;
        let late = || Error::new(ErrorKind::Timeout, "the broker did not confirm every answer in time");
        let flushed = timeout_at(deadline, self.consumer.flush()).await.unwrap_or_else(|_| Err(late()));
        if let Err(error) = flushed {
            self.report.stopped.get_or_insert(error);
        }
        let _ = timeout_at(deadline, async {
            // What is given back does not come again to a consumer that stopped; what is not comes again by itself.
            self.consumer.stop().await;
            let held = self.unanswered.keys().map(|token| Answer::Release(*token)).collect();
            if let Some(pending) = self.consumer.settle(held).pending {
                pending.await;
            }
        })
        .await;
        self.consumer.close(deadline).await;
        self.outbox.close(deadline).await;
    }
}
