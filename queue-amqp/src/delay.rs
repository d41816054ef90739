//! Delays without a plugin: a ladder of queues, each of which holds messages for a fixed time.
//!
//! Level `n` holds for 2^n x 100 ms. A delayed message goes to the exchange of its highest level with its delay in
//! binary as routing key, and the name of its queue behind that. On each level the digit decides whether it goes into
//! the level's queue, which passes it on to the next lower level when its time is over, or there at once. All messages
//! of one queue wait equally long, so none holds up another. Rounded up to seven significant digits, a message makes at
//! most seven stops.
//!
//! The last exchange knows the queues that delayed messages were sent to. What finds its queue gone ends in
//! `anyqueue-delay-lost`: queues that pass on at least once would keep it, and stop for it.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Weak};
use std::time::Duration;

use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, Outcome, Result};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::MAX_SHORT;
use crate::convert::{arguments, short};
use crate::error::within;
use crate::link::{Session, Sessions, open_channel, while_up};

const LEVELS: u32 = 24;
const UNIT: Duration = Duration::from_millis(100);
/// A delay has this many binary digits that are not zero by rounding: it is at most a 64th late.
const SIGNIFICANT: u32 = 7;
/// The longest delay: seven ones and seventeen zeros, about 19 days.
pub(crate) const MAX_DELAY: Duration = UNIT.saturating_mul(((1 << SIGNIFICANT) - 1) << (LEVELS - SIGNIFICANT));

/// What the names of the ladder's exchanges and queues begin with.
pub(crate) const PREFIX: &str = "anyqueue-delay-";
/// Behind the lowest level.
const OUT: &str = "anyqueue-delay-out";
/// Where messages go whose queue is gone: an exchange and a queue.
const LOST: &str = "anyqueue-delay-lost";
/// Most destinations that are remembered; beyond, they are bound again when they are needed.
const MOST_BOUND: usize = 10_000;
/// How long a queue counts as bound. Whoever makes it anew elsewhere tells nobody, and its binding is gone.
const BOUND_FOR: Duration = Duration::from_secs(15);
/// Wait before another attempt to bind a queue again.
const AGAIN: Duration = Duration::from_millis(200);

/// A delay in units of 100 ms, as the ladder can make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticks(u32);

impl Ticks {
    /// Rounds up; `None` for no delay, and for one that is too long.
    pub(crate) fn of(delay: Duration) -> Option<Self> {
        if delay > MAX_DELAY {
            return None;
        }
        let ticks = u32::try_from(delay.as_nanos().div_ceil(UNIT.as_nanos())).ok().filter(|t| *t > 0)?;
        let spare = (u32::BITS - ticks.leading_zeros()).saturating_sub(SIGNIFICANT);
        Some(Self(ticks.div_ceil(1 << spare) << spare))
    }

    fn highest(self) -> u32 {
        u32::BITS - 1 - self.0.leading_zeros()
    }

    /// The levels to make, a digit each: all up to the highest, and one above them that no message needs yet. RabbitMQ
    /// writes down a new quorum queue when the next is made, or up to a second later; killed before that, it loses the
    /// queue that was made last and what it confirmed there.
    fn levels(self) -> u32 {
        (2 << (self.highest() + 1).min(LEVELS - 1)) - 1
    }

    /// The exchange where a message with this delay starts.
    pub(crate) fn exchange(self) -> String {
        level(self.highest())
    }

    /// The routing key of a message with this delay.
    pub(crate) fn routing_key(self, queue: &str) -> Result<String> {
        let digits: String = (0..LEVELS).rev().map(|n| if self.0 >> n & 1 == 1 { "1." } else { "0." }).collect();
        let key = digits + &word(queue);
        if key.len() > MAX_SHORT {
            return Err(Error::unsupported("the name of the queue is too long for a delayed message")
                .with_context("limit", MAX_SHORT)
                .with_context("actual", key.len()));
        }
        Ok(key)
    }
}

/// Whether the way to this queue fits into a routing key.
pub(crate) fn fits(queue: &str) -> bool {
    Ticks(1).routing_key(queue).is_ok()
}

fn level(n: u32) -> String {
    format!("{PREFIX}{n}")
}

/// The name as one word of a routing key, without the signs that mean something there.
fn word(queue: &str) -> String {
    queue.replace('%', "%25").replace('.', "%2E").replace('*', "%2A").replace('#', "%23")
}

/// Matches what comes to level `n` with this digit there.
fn pattern(n: u32, digit: char) -> String {
    let above = usize::try_from(LEVELS - 1 - n).unwrap_or_default();
    format!("{}{digit}.#", "*.".repeat(above))
}

/// Knows which parts of the ladder exist, and makes what is missing.
pub(crate) struct Ladder {
    state: Mutex<State>,
    work: Notify,
}

#[derive(Default)]
struct State {
    /// The connection that all this was seen on. Another node, or one that was set up anew, may have less.
    session: Weak<Session>,
    /// Levels below this have their exchange.
    levels: u32,
    /// A digit for each level that has its queue.
    queues: u32,
    /// Queues that the last exchange knows, and when they are to be bound again.
    bound: HashMap<String, Instant>,
    /// Queues that delayed messages wait to be sent to, and the levels that these need.
    wanted: BTreeMap<String, u32>,
    /// Why a queue cannot be sent to with a delay: told once, then tried again.
    refused: HashMap<String, Error>,
    /// The queue that was prepared last.
    last: String,
}

impl State {
    /// Nothing is known to exist any more.
    fn reset(&mut self) {
        let wanted = std::mem::take(&mut self.wanted);
        *self = Self { wanted, ..Self::default() };
    }

    fn has(&self, levels: u32) -> bool {
        self.levels >= u32::BITS - levels.leading_zeros() && levels & !self.queues == 0
    }

    /// What to prepare: each queue in turn, so that none that takes long holds up the others.
    fn next(&mut self) -> Option<(String, u32)> {
        let behind = (Bound::Excluded(&*self.last), Bound::Unbounded);
        let next = self.wanted.range::<str, _>(behind).next().or_else(|| self.wanted.first_key_value());
        let (queue, levels) = next.map(|(queue, levels)| (queue.clone(), *levels))?;
        self.last.clone_from(&queue);
        Some((queue, levels))
    }

    fn made(&mut self, queue: String, levels: u32, now: Instant) {
        self.levels = self.levels.max(u32::BITS - levels.leading_zeros());
        self.queues |= levels;
        // More levels may have become wanted meanwhile.
        if self.wanted.get(&queue) == Some(&levels) {
            self.wanted.remove(&queue);
        }
        if self.bound.len() >= MOST_BOUND {
            self.bound.clear();
        }
        self.bound.insert(queue, now + BOUND_FOR);
    }

    /// Whoever sends is told, and asks again where that can help.
    fn failed(&mut self, queue: String, levels: u32, error: Error, now: Instant) {
        self.wanted.remove(&queue);
        if error.kind() == ErrorKind::NotFound && error.message().contains("no exchange") {
            // A part of the ladder went; all of it is made again when it is asked for again.
            return self.reset();
        }
        let usable = self.has(levels) && self.bound.contains_key(&queue);
        if usable && error.is_retryable() {
            self.bound.insert(queue, now + AGAIN);
            return;
        }
        self.bound.remove(&queue);
        // Nobody waits for a queue that was only bound again.
        if !usable {
            if self.refused.len() >= MOST_BOUND {
                self.refused.clear();
            }
            self.refused.insert(queue, error.with_operation("prepare a delay").with_outcome(Outcome::NotSent));
        }
    }
}

/// The error of a message that found a part of the ladder gone.
pub(crate) fn gone() -> Error {
    Error::new(ErrorKind::Connection, "the queues for delayed messages are gone, and made anew").with_operation("send")
}

impl Ladder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), work: Notify::new() })
    }

    /// Whether a message to this queue can be published with this delay now. While parts are missing they are made,
    /// and the message is to be sent again.
    pub(crate) fn ready(&self, queue: &str, ticks: Ticks) -> Result<()> {
        let (levels, mut state) = (ticks.levels(), self.state.lock());
        let until = state.bound.get(queue).copied().filter(|_| state.has(levels));
        if until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        if until.is_none()
            && let Some(error) = state.refused.remove(queue)
        {
            return Err(error);
        }
        *state.wanted.entry(queue.to_owned()).or_default() |= levels;
        drop(state);
        self.work.notify_one();
        match until {
            // It is bound again meanwhile.
            Some(_) => Ok(()),
            None => Err(Error::new(ErrorKind::Connection, "the queues for delayed messages are not ready yet")),
        }
    }

    /// The queue may be gone, or another of the same name.
    pub(crate) fn forget(&self, queue: &str) {
        self.state.lock().bound.remove(queue);
    }

    /// A part of the ladder is missing.
    pub(crate) fn forget_all(&self) {
        self.state.lock().reset();
    }

    /// Makes what is wanted, for as long as the broker is open.
    pub(crate) async fn run(self: Arc<Self>, mut sessions: Sessions, timeout: Duration) {
        loop {
            self.note(&mut sessions);
            let next = self.state.lock().next();
            let Some((queue, levels)) = next else {
                tokio::select! {
                    () = self.work.notified() => {}
                    changed = sessions.changed() => if changed.is_err() { return },
                }
                continue;
            };
            let prepared = self.prepare(&mut sessions, &queue, levels, Instant::now() + timeout).await;
            if self.note(&mut sessions) && prepared.is_ok() {
                // On which of the two it was made is not known.
                continue;
            }
            let mut state = self.state.lock();
            match prepared {
                Ok(()) => state.made(queue, levels, Instant::now()),
                Err(error) => {
                    tracing::debug!(%error, queue, "preparing a delay failed");
                    state.failed(queue, levels, error, Instant::now());
                }
            }
        }
    }

    /// Looks which connection there is; true when it is another one, on which nothing is known.
    fn note(&self, sessions: &mut Sessions) -> bool {
        let session = sessions.borrow_and_update().as_ref().map_or_else(Weak::new, Arc::downgrade);
        let mut state = self.state.lock();
        let other = !session.ptr_eq(&state.session);
        if other {
            state.reset();
            state.session = session;
        }
        other
    }

    async fn prepare(&self, sessions: &mut Sessions, queue: &str, levels: u32, deadline: Instant) -> Result<()> {
        let channel = open_channel(sessions, deadline).await?;
        while_up(sessions, self.prepare_on(&channel, queue, levels, deadline)).await?;
        // An idle channel costs something with every frame of its connection.
        let _ = within(deadline, "close", channel.close(200, "OK".into())).await;
        Ok(())
    }

    async fn prepare_on(&self, channel: &Channel, queue: &str, levels: u32, deadline: Instant) -> Result<()> {
        let maker = Maker { channel, deadline };
        let (have, queues) = {
            let state = self.state.lock();
            (state.levels, state.queues)
        };
        if have == 0 {
            maker.end().await?;
        }
        for n in have..u32::BITS - levels.leading_zeros() {
            maker.level(n).await?;
        }
        for n in (0..LEVELS).filter(|n| levels & !queues & 1 << n != 0) {
            maker.queue(n).await?;
        }
        let known = maker.bind(queue, OUT, &format!("{}{}", "*.".repeat(LEVELS as usize), word(queue))).await;
        known.map_err(|e| e.with_context("queue", queue))
    }
}

/// Makes exchanges, queues and bindings; what is there already stays.
struct Maker<'a> {
    channel: &'a Channel,
    deadline: Instant,
}

impl Maker<'_> {
    /// The exchange behind the lowest level, and what takes the messages that nobody there wants.
    async fn end(&self) -> Result<()> {
        self.exchange(LOST, ExchangeKind::Fanout, FieldTable::default()).await?;
        self.declare(LOST, arguments([quorum()])?).await?;
        self.bind(LOST, LOST, "").await?;
        let instead = [("alternate-exchange", AMQPValue::LongString(LOST.into()))];
        self.exchange(OUT, ExchangeKind::Topic, arguments(instead)?).await
    }

    /// The exchange of a level, and the way past the level's queue.
    async fn level(&self, n: u32) -> Result<()> {
        self.exchange(&level(n), ExchangeKind::Topic, FieldTable::default()).await?;
        let (from, to) = (short(&level(n))?, short(&below(n))?);
        let options = ExchangeBindOptions::default();
        let bound = self.channel.exchange_bind(to, from, short(&pattern(n, '0'))?, options, FieldTable::default());
        within(self.deadline, "bind", bound).await
    }

    /// The queue of a level.
    async fn queue(&self, n: u32) -> Result<()> {
        let held = i64::try_from(UNIT.as_millis()).unwrap_or(i64::MAX) << n;
        let table = arguments([
            quorum(),
            ("x-message-ttl", AMQPValue::LongLongInt(held)),
            ("x-dead-letter-exchange", AMQPValue::LongString(below(n).into())),
            ("x-dead-letter-strategy", AMQPValue::LongString("at-least-once".into())),
            // What passes on at least once must not drop at its head.
            ("x-overflow", AMQPValue::LongString("reject-publish".into())),
        ])?;
        self.declare(&level(n), table).await?;
        self.bind(&level(n), &level(n), &pattern(n, '1')).await
    }

    async fn exchange(&self, name: &str, kind: ExchangeKind, table: FieldTable) -> Result<()> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        within(self.deadline, "declare", self.channel.exchange_declare(short(name)?, kind, options, table))
            .await
            .map_err(|e| e.with_context("exchange", name))
    }

    async fn declare(&self, name: &str, table: FieldTable) -> Result<()> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        within(self.deadline, "declare", self.channel.queue_declare(short(name)?, options, table))
            .await
            .map(|_| ())
            .map_err(|e| e.with_context("queue", name))
    }

    async fn bind(&self, queue: &str, exchange: &str, key: &str) -> Result<()> {
        let options = QueueBindOptions::default();
        let (queue, exchange, key) = (short(queue)?, short(exchange)?, short(key)?);
        within(self.deadline, "bind", self.channel.queue_bind(queue, exchange, key, options, FieldTable::default()))
            .await
    }
}

fn below(n: u32) -> String {
    n.checked_sub(1).map_or_else(|| OUT.to_owned(), level)
}

fn quorum() -> (&'static str, AMQPValue) {
    ("x-queue-type", AMQPValue::LongString("quorum".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(delay: Duration) -> Duration {
        UNIT * Ticks::of(delay).unwrap().0
    }

    #[test]
    fn a_delay_is_never_shortened_and_hardly_lengthened() {
        for millis in (1..10_000).chain((1..100_000).map(|n| n * 16_771)) {
            let delay = Duration::from_millis(millis);
            let Some(ticks) = Ticks::of(delay) else {
                assert!(delay > MAX_DELAY, "{delay:?}");
                continue;
            };
            assert!(ticks.0.count_ones() <= SIGNIFICANT && ticks.highest() < LEVELS, "{delay:?}");
            let made = made(delay);
            assert!(made >= delay, "{delay:?} became {made:?}");
            let late = made - delay;
            assert!(late < UNIT || late.as_secs_f64() <= delay.as_secs_f64() / 64.0, "{delay:?} became {made:?}");
        }
        assert_eq!(made(Duration::from_nanos(1)), UNIT);
        assert_eq!(made(MAX_DELAY), MAX_DELAY);
        assert_eq!(Ticks::of(MAX_DELAY + Duration::from_nanos(1)), None);
        assert_eq!(Ticks::of(Duration::ZERO), None);
    }

    #[test]
    fn every_level_that_a_delay_needs_is_followed_by_one_that_it_does_not() {
        assert_eq!(Ticks(0b1).levels(), 0b11);
        assert_eq!(Ticks(0b100).levels(), 0b1111);
        // Above the highest there is none.
        assert_eq!(Ticks::of(MAX_DELAY).unwrap().levels(), (1 << LEVELS) - 1);
    }

    #[test]
    fn a_queue_that_cannot_be_prepared_is_told_and_holds_up_no_other() {
        let (mut state, now) = (State::default(), Instant::now());
        state.wanted = ["a", "b", "c"].map(|queue| (queue.to_owned(), 1)).into();
        let timeout = Error::new(ErrorKind::Timeout, "no answer");
        assert_eq!(state.next(), Some(("a".to_owned(), 1)));
        state.failed("a".to_owned(), 1, timeout.clone(), now);
        assert!(state.refused["a"].is_retryable() && state.refused["a"].outcome() == Outcome::NotSent);
        // Asked for again meanwhile, it has its turn after the others.
        state.wanted.insert("a".to_owned(), 1);
        assert_eq!(state.next(), Some(("b".to_owned(), 1)));
        state.made("b".to_owned(), 1, now);
        assert_eq!(state.next(), Some(("c".to_owned(), 1)));
        state.made("c".to_owned(), 1, now);
        assert_eq!(state.next(), Some(("a".to_owned(), 1)));
        // One that was bound stays usable while it cannot be bound again, and not when it is gone.
        state.failed("b".to_owned(), 1, timeout, now);
        assert!(state.bound.contains_key("b") && !state.refused.contains_key("b"));
        state.failed("b".to_owned(), 1, Error::new(ErrorKind::NotFound, "no queue 'b'"), now);
        assert!(!state.bound.contains_key("b") && !state.refused.contains_key("b"));
        // Without the ladder's exchanges nothing is as it was, but for what is wanted.
        state.failed("x".to_owned(), 1, Error::new(ErrorKind::NotFound, "no exchange 'y'"), now);
        assert!(state.bound.is_empty() && state.levels == 0 && state.wanted.contains_key("a"));
    }

    #[test]
    fn the_key_spells_the_delay_and_the_queue_as_one_word() {
        let ticks = Ticks::of(Duration::from_millis(500)).unwrap();
        assert_eq!(ticks.exchange(), "anyqueue-delay-2");
        let key = ticks.routing_key("a.b#%").unwrap();
        assert_eq!(key, format!("{}1.0.1.a%2Eb%23%25", "0.".repeat(21)));
        assert_eq!(pattern(23, '1'), "1.#");
        assert_eq!(pattern(0, '0'), format!("{}0.#", "*.".repeat(23)));
        let long = ticks.routing_key(&"q".repeat(250)).unwrap_err();
        assert_eq!((long.kind(), long.context("limit")), (ErrorKind::Unsupported, Some("255")));
    }
}
