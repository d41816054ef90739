//! One pass over dead letters.
//!
//! Every dead letter that is met stays unanswered until its copy is confirmed, or until the end, so that none is met twice.
//! What died after the pass began is left, where it says when; the pass ends with the number of those that were there where the
//! broker tells it exactly. Of those that say nothing, what comes beyond an estimate is put back only after nothing came any more.

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout_at};

use super::expected::Expected;
use super::{Filter, Redriven};
use crate::address::Source;
use crate::consumer::{AckToken, Answer, Consumer, Received};
use crate::dead_letter;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::message::Message;
use crate::outbox::Owned;
use crate::producer::Receipt;
use crate::verdict::Verdict;

/// Most bytes of dead letters that are held at a time.
pub(super) const MOST_BYTES: usize = 64 << 20;
/// Most that are fetched at once, and most copies in flight.
const MOST_AT_ONCE: usize = 256;
/// Bytes of copies in flight before more wait: below the window of a sender, so that handing one over takes no time.
const MOST_SENDING: usize = 16 << 20;
/// How long the first may take where the broker says that there is one: a group of Kafka has to be joined.
const FIRST: Duration = Duration::from_secs(30);
/// How long the end may take.
const END: Duration = Duration::from_secs(30);

/// Which dead letters are put back.
pub(super) struct Wanted {
    pub(super) source: Source,
    /// The group that copies name.
    pub(super) group: Option<String>,
    pub(super) filter: Option<Filter>,
    pub(super) limit: u64,
    /// Most that are held at a time.
    pub(super) most: usize,
    /// What died later is left.
    pub(super) before: SystemTime,
}

pub(super) struct Pass {
    consumer: Arc<dyn Consumer>,
    outbox: Owned,
    wanted: Wanted,
    expected: Expected,
    lease: Duration,
    idle: Duration,
    /// When it ends unless something comes.
    quiet: Instant,
    /// More is fetched.
    open: bool,
    looked_at: u64,
    chosen: u64,
    /// Those that were met and not acknowledged, with their sizes.
    unanswered: HashMap<AckToken, usize>,
    bytes: usize,
    /// Copies that are not sent yet.
    waiting: VecDeque<(AckToken, Message)>,
    /// Copies of what may have died since the start; they wait until nothing more comes.
    unsure: VecDeque<(AckToken, Message)>,
    sending: FuturesUnordered<BoxFuture<'static, (AckToken, Result<Receipt>)>>,
    sending_bytes: usize,
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
        let first = if expected.count() > 0 { idle.max(FIRST) } else { idle };
        Self {
            consumer,
            outbox,
            wanted,
            expected,
            lease,
            idle,
            quiet: crate::memory::far(Instant::now(), first),
            open: true,
            looked_at: 0,
            chosen: 0,
            unanswered: HashMap::new(),
            bytes: 0,
            waiting: VecDeque::new(),
            unsure: VecDeque::new(),
            sending: FuturesUnordered::new(),
            sending_bytes: 0,
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
        let quiet = sleep_until(self.quiet);
        tokio::pin!(quiet);
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
                _ = renewal.tick() => {
                    self.look_after_held();
                    if leased {
                        self.renew();
                    }
                }
                Some((token, sent)) = self.sending.next() => self.sent(token, sent),
                fetched = poll_fn(|cx| consumer.poll_receive(cx, room, &mut received)), if fetches => match fetched {
                    Ok(()) => {
                        self.look_after_held();
                        received.drain(..).for_each(|item| self.meet(item));
                        self.close_when_done();
                    }
                    Err(error) => self.stop(error),
                },
                () = &mut quiet, if self.open && self.sending.is_empty() => self.dried_up(),
            }
            quiet.as_mut().reset(self.quiet);
        }
    }

    /// Something came, or went.
    fn stir(&mut self) {
        self.quiet = crate::memory::far(Instant::now(), self.idle);
    }

    /// What may be fetched at once.
    fn room(&self) -> NonZeroUsize {
        let mut left = self.wanted.limit.saturating_sub(self.chosen);
        if let Expected::Exactly(count) = self.expected {
            left = left.min(count.saturating_sub(self.looked_at));
        }
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let room = MOST_AT_ONCE.min(left).min(self.wanted.most.saturating_sub(self.unanswered.len()));
        NonZeroUsize::new(room).unwrap_or(NonZeroUsize::MIN)
    }

    /// What the broker took away comes again, here or elsewhere: nobody could tell that it has been looked at.
    fn look_after_held(&mut self) {
        if !self.open {
            return;
        }
        let lost = self.unanswered.keys().filter(|token| !self.consumer.holds(**token)).count();
        if lost > 0 {
            let why = "dead letters that this pass held are the broker's again, so that they would come twice";
            self.stop(Error::new(ErrorKind::LeaseLost, why).with_context("lost", lost));
        }
    }

    /// Looks at a dead letter, which is held from now on.
    fn meet(&mut self, item: Received) {
        let Received { message, token, .. } = item;
        let size = message.as_ref().map_or_else(|undecodable| undecodable.raw.len(), Message::size);
        self.unanswered.insert(token, size);
        self.bytes += size;
        if !self.open {
            return;
        }
        let died = message.as_ref().ok().and_then(dead_letter::died_at);
        if died.is_some_and(|at| at > self.wanted.before) {
            self.report.later += 1;
            return;
        }
        self.looked_at += 1;
        self.stir();
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
            let is_unsure = died.is_none() && self.looked_at > self.expected.count();
            let copies = if is_unsure { &mut self.unsure } else { &mut self.waiting };
            copies.push_back((token, dead_letter::put_back(&message, self.wanted.group.as_deref())));
        }
    }

    fn close_when_done(&mut self) {
        let is_done = matches!(self.expected, Expected::Exactly(count) if self.looked_at >= count);
        if self.chosen >= self.wanted.limit || is_done {
            self.open = false;
        }
    }

    fn is_full(&self) -> bool {
        self.unanswered.len() >= self.wanted.most || self.bytes >= MOST_BYTES
    }

    fn full(&self) -> Error {
        let why = "so many dead letters are held that those behind them are not looked at";
        Error::new(ErrorKind::TooLarge, why)
            .with_context("limit", format!("{} messages, {MOST_BYTES} bytes", self.wanted.most))
            .with_context("actual", format!("{} messages, {} bytes", self.unanswered.len(), self.bytes))
    }

    /// Nothing came for a while.
    fn dried_up(&mut self) {
        self.look_after_held();
        let is_short = match self.expected {
            Expected::Exactly(count) => self.looked_at < count,
            Expected::About(count) => self.looked_at == 0 && count > 0,
        };
        if is_short {
            let error = Error::new(ErrorKind::Timeout, "the broker tells of more dead letters than came")
                .with_context("told", self.expected.count())
                .with_context("came", self.looked_at);
            self.stop(error);
        }
        self.open = false;
    }

    /// Sends copies while there is room.
    async fn send_waiting(&mut self) {
        if !self.open {
            self.waiting.append(&mut self.unsure);
        }
        while self.sending.len() < MOST_AT_ONCE && self.sending_bytes < MOST_SENDING {
            let Some((token, copy)) = self.waiting.pop_front() else { return };
            if !self.consumer.holds(token) {
                let why = "the dead letter is the broker's again: it stays";
                self.report.failed.push(Error::new(ErrorKind::LeaseLost, why));
                self.look_after_held();
                self.forget(token);
                continue;
            }
            match self.outbox.submit(copy).await {
                Ok(slot) => {
                    self.sending_bytes += self.unanswered.get(&token).copied().unwrap_or(0);
                    self.sending.push(Box::pin(async move { (token, Verdict::new(slot).await) }));
                }
                Err(error) => self.failed(error),
            }
        }
    }

    fn sent(&mut self, token: AckToken, sent: Result<Receipt>) {
        self.stir();
        self.sending_bytes -= self.unanswered.get(&token).copied().unwrap_or(0);
        match sent {
            Ok(_) if self.consumer.ack(&[token]).stale.is_empty() => {
                self.forget(token);
                self.report.moved += 1;
            }
            Ok(_) => {
                let why = "it is back, and its dead letter is the broker's again: it stays as well";
                self.report.failed.push(Error::new(ErrorKind::LeaseLost, why).with_outcome(Outcome::Unknown));
                self.look_after_held();
                self.forget(token);
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
            self.unsure.clear();
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
        let closed = self.consumer.close(deadline).await;
        if let Some(error) = closed.errors.into_iter().next() {
            // Acknowledgements that the broker did not take.
            self.report.stopped.get_or_insert(error);
        }
        self.outbox.close(deadline).await;
    }
}
