//! Scripted faults.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::client::Named;
use super::script::{Fault, OnAck, OnReceive, OnSend};
use crate::address::Address;
use crate::error::{Error, ErrorKind, Outcome};
use crate::event::{EventKind, Events, HealthState};

/// What goes wrong: rules by operation and address, which hold from the moment they are made.
///
/// | what is asked for | a send | a receipt | an ack |
/// | --- | --- | --- | --- |
/// | `fail` | fails with this kind and outcome; nothing is stored | ends the receiver with this kind | is refused with this kind; the message comes again |
/// | `lose` | is not stored, which the sender cannot know (`Unknown`) | the message does not arrive, and comes again when its lease ends | does not arrive; the message comes again when its lease ends |
/// | `lose_verdict` | is stored, which the sender is not told (`Unknown`) | | |
/// | `delay` | is stored and confirmed later; others overtake it | the message arrives later; others overtake it | arrives later |
/// | `duplicate` | is stored twice | the message arrives twice; answers to the second one reach nobody | |
/// | `disconnect` | the connection breaks before it is stored (`Unknown`) | … before the message arrives | … before it arrives |
///
/// Where messages are held while connected, as on RabbitMQ and Kafka, what is lost comes again when the receiver closes.
/// While disconnected, sends fail as `NotSent`, nothing arrives, and what was unanswered is lost to its receiver. The sender
/// and the receiver react as they do to a broker: with repeated sends, events and health.
///
/// The first rule that applies to an operation is the one that counts. Each looks at all operations that it is about, in order, also
/// at those that happen to another rule, so that a program that does the same things meets the same faults; chance comes from a
/// seed, which an assertion that fails shows.
///
/// ```
/// use queue_core::{ErrorKind, Outcome, testing::TestClient};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> queue_core::Result<()> {
/// let client = TestClient::new();
/// let lost = client.faults().on_send("orders").times(2).fail(ErrorKind::Connection, Outcome::NotSent);
/// client.sender("orders").await?.send("7").await?; // tried until it is stored
/// assert_eq!(lost.count(), 2);
/// client.tried("orders").count(3).await;
/// client.sent("orders").one().await;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Faults(Arc<Inner>);

struct Inner {
    script: Mutex<Script>,
    /// How often the connection was lost.
    losses: AtomicU64,
    /// Those that wait for messages; a lost connection wakes them, to let go of what they hold.
    pollers: Mutex<Vec<Weak<AtomicWaker>>>,
}

struct Script {
    rules: Vec<Rule>,
    seed: u64,
    /// Whether anything depends on the seed.
    chance: bool,
    random: fastrand::Rng,
    down_until: Option<Instant>,
}

pub(super) struct Rule {
    pub(super) operation: Kind,
    pub(super) address: Named,
    /// How often it is spared before.
    pub(super) skip: usize,
    /// Whether it is about certain operations, such as the third, and no others in their place.
    pub(super) counts: bool,
    /// How often it still happens.
    pub(super) left: usize,
    pub(super) chance: f64,
    pub(super) action: Action,
    /// How often it happened.
    pub(super) count: Arc<AtomicUsize>,
}

/// The operation that a fault happens to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Send,
    Receive,
    Ack,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Action {
    Fail(ErrorKind, Outcome),
    Lose,
    LoseVerdict,
    Delay(Duration),
    Duplicate,
    Disconnect(Duration),
}

impl Faults {
    pub(super) fn new() -> Self {
        let seed = u64::from(fastrand::u32(..));
        let random = fastrand::Rng::with_seed(seed);
        let script = Script { rules: Vec::new(), seed, chance: false, random, down_until: None };
        Self(Arc::new(Inner { script: Mutex::new(script), losses: AtomicU64::new(0), pollers: Mutex::default() }))
    }

    /// A fault of sends to an address; `*` is every one.
    pub fn on_send(&self, address: &str) -> Fault<'_, OnSend> {
        Fault::new(self, Kind::Send, address)
    }

    /// A fault of messages that come from an address; `*` is every one.
    pub fn on_receive(&self, address: &str) -> Fault<'_, OnReceive> {
        Fault::new(self, Kind::Receive, address)
    }

    /// A fault of acknowledgements of messages from an address; `*` is every one. Other answers are spared.
    pub fn on_ack(&self, address: &str) -> Fault<'_, OnAck> {
        Fault::new(self, Kind::Ack, address)
    }

    /// Where chance starts, to see again what a test that failed has seen. Default: another one each time.
    pub fn seed(&self, seed: u64) {
        let mut script = self.0.script.lock();
        script.seed = seed;
        script.random = fastrand::Rng::with_seed(seed);
    }

    /// Ends every rule; the seed is still told. A connection that is down comes back when it was to.
    pub fn clear(&self) {
        self.0.script.lock().rules.clear();
    }

    pub(super) fn add(&self, rule: Rule) {
        let mut script = self.0.script.lock();
        script.chance |= rule.chance < 1.0;
        script.rules.push(rule);
    }

    /// The seed, where anything depends on it.
    pub(super) fn seed_in_use(&self) -> Option<u64> {
        let script = self.0.script.lock();
        script.chance.then_some(script.seed)
    }

    /// What happens to this operation.
    pub(super) fn next(&self, operation: Kind, address: &Address) -> Option<Action> {
        let mut script = self.0.script.lock();
        let Script { rules, random, .. } = &mut *script;
        let about = rules.iter_mut().filter(|rule| rule.operation == operation && rule.address.is(address));
        let mut first: Option<&mut Rule> = None;
        for rule in about.filter_map(|rule| rule.looks(random).then_some(rule)) {
            match first {
                None => first = Some(rule),
                Some(_) => rule.missed(),
            }
        }
        first.map(|rule| rule.happens())
    }

    /// Until when the connection is down, if it is.
    pub(super) fn down_until(&self) -> Option<Instant> {
        self.0.script.lock().down_until.filter(|until| *until > Instant::now())
    }

    pub(super) fn losses(&self) -> u64 {
        self.0.losses.load(Ordering::Acquire)
    }

    pub(super) fn poller(&self) -> Arc<AtomicWaker> {
        let poller = Arc::new(AtomicWaker::new());
        let mut pollers = self.0.pollers.lock();
        pollers.retain(|poller| poller.strong_count() > 0);
        pollers.push(Arc::downgrade(&poller));
        poller
    }

    /// The connection is lost, and back after this time.
    pub(super) fn disconnect(&self, down: Duration, events: &Events, runtime: &tokio::runtime::Handle) {
        const SUBJECT: &str = "scripted fault";
        self.0.script.lock().down_until = Some(crate::memory::far(Instant::now(), down));
        self.0.losses.fetch_add(1, Ordering::AcqRel);
        events.emit(EventKind::Disconnected, SUBJECT, Some(broken(Outcome::Unknown)));
        events.set_problem(SUBJECT, Some((HealthState::Down, "the connection is down".to_owned())));
        self.0.pollers.lock().iter().filter_map(Weak::upgrade).for_each(|poller| poller.wake());
        let (faults, events) = (Arc::downgrade(&self.0), events.clone());
        runtime.spawn(async move {
            tokio::time::sleep(down).await;
            let Some(faults) = faults.upgrade().map(Self) else { return };
            if faults.down_until().is_none() {
                events.set_problem(SUBJECT, None);
                events.emit(EventKind::Connected, SUBJECT, None);
            }
        });
    }
}

impl Rule {
    /// Looks at an operation that it is about; whether it applies.
    fn looks(&mut self, random: &mut fastrand::Rng) -> bool {
        if self.left == 0 || (self.chance < 1.0 && random.f64() >= self.chance) {
            return false;
        }
        let spared = self.skip > 0;
        self.skip = self.skip.saturating_sub(1);
        !spared
    }

    /// It applied, and another rule comes first.
    fn missed(&mut self) {
        self.left -= usize::from(self.counts);
    }

    fn happens(&mut self) -> Action {
        self.left -= 1;
        self.count.fetch_add(1, Ordering::AcqRel);
        self.action
    }
}

/// The error of a connection that a fault broke.
pub(super) fn broken(outcome: Outcome) -> Error {
    scripted(ErrorKind::Connection, "the connection broke", outcome)
}

pub(super) fn scripted(kind: ErrorKind, what: &'static str, outcome: Outcome) -> Error {
    Error::new(kind, what).with_outcome(outcome).with_context("cause", "a scripted fault")
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let script = self.0.script.lock();
        f.debug_struct("Faults").field("rules", &script.rules.len()).field("seed", &script.seed).finish_non_exhaustive()
    }
}
