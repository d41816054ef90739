//! How a fault is described.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::client::Named;
use super::fault::{Action, Faults, Kind, Rule};
use crate::error::{ErrorKind, Outcome};

/// Sends, as the operation of a [`Fault`].
#[derive(Debug)]
pub struct OnSend;
/// The arrival of messages, as the operation of a [`Fault`].
#[derive(Debug)]
pub struct OnReceive;
/// Acknowledgements, as the operation of a [`Fault`].
#[derive(Debug)]
pub struct OnAck;

/// [`OnSend`], [`OnReceive`] or [`OnAck`].
pub trait Operation: private::Sealed {}

mod private {
    pub trait Sealed {}
    impl Sealed for super::OnSend {}
    impl Sealed for super::OnReceive {}
    impl Sealed for super::OnAck {}
}

impl Operation for OnSend {}
impl Operation for OnReceive {}
impl Operation for OnAck {}

/// A fault that is being described: how often it happens, then what happens. Without a word on how often, each time.
#[must_use = "a fault happens when it is said what happens"]
pub struct Fault<'a, O> {
    faults: &'a Faults,
    operation: Kind,
    address: Named,
    skip: usize,
    counts: bool,
    times: usize,
    chance: f64,
    of: PhantomData<fn() -> O>,
}

impl<'a, O: Operation> Fault<'a, O> {
    pub(super) fn new(faults: &'a Faults, operation: Kind, address: &str) -> Self {
        let address = Named::new(address);
        Self { faults, operation, address, skip: 0, counts: false, times: usize::MAX, chance: 1.0, of: PhantomData }
    }

    /// Only the n-th time, counted from 1, from now on. If another rule counts then, it does not happen.
    pub fn nth(mut self, n: usize) -> Self {
        self.skip = n.saturating_sub(1);
        self.counts = true;
        self.times = 1;
        self
    }

    /// Only so many times; after [`nth`](Self::nth), from the n-th on.
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// With this chance each time, from 0 to 1; the others are not counted by [`nth`](Self::nth) and
    /// [`times`](Self::times).
    pub fn chance(mut self, chance: f64) -> Self {
        self.chance = chance;
        self
    }

    /// It is lost on the way.
    pub fn lose(self) -> Scripted {
        self.script(Action::Lose)
    }

    /// It takes this long.
    pub fn delay(self, delay: Duration) -> Scripted {
        self.script(Action::Delay(delay))
    }

    /// The connection breaks before it, and is back after this time.
    pub fn disconnect(self, down: Duration) -> Scripted {
        self.script(Action::Disconnect(down))
    }

    fn script(self, action: Action) -> Scripted {
        let count = Arc::new(AtomicUsize::new(0));
        self.faults.add(Rule {
            operation: self.operation,
            address: self.address,
            skip: self.skip,
            counts: self.counts,
            left: self.times,
            chance: self.chance,
            action,
            count: count.clone(),
        });
        Scripted(count)
    }
}

impl Fault<'_, OnSend> {
    /// It fails with this kind, and the sender is told this outcome.
    pub fn fail(self, kind: ErrorKind, outcome: Outcome) -> Scripted {
        self.script(Action::Fail(kind, outcome))
    }

    /// It is stored, and the broker's word is lost.
    pub fn lose_verdict(self) -> Scripted {
        self.script(Action::LoseVerdict)
    }

    /// It is stored twice.
    pub fn duplicate(self) -> Scripted {
        self.script(Action::Duplicate)
    }
}

impl Fault<'_, OnReceive> {
    /// The receiver ends with an error of this kind, and the message is given back. Real ones end with `NotFound`,
    /// `Conflict`, `Unauthorized` and `Closed` only.
    pub fn fail(self, kind: ErrorKind) -> Scripted {
        self.script(Action::Fail(kind, Outcome::Unknown))
    }

    /// The message arrives twice.
    pub fn duplicate(self) -> Scripted {
        self.script(Action::Duplicate)
    }
}

impl Fault<'_, OnAck> {
    /// It is refused: at once where the kind is `LeaseLost`, else with an `AnswerFailed` event and an error of the next
    /// flush. The message comes again.
    pub fn fail(self, kind: ErrorKind) -> Scripted {
        self.script(Action::Fail(kind, Outcome::Unknown))
    }
}

impl<O> fmt::Debug for Fault<'_, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("operation", &self.operation)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// A fault that is in force.
#[derive(Debug, Clone)]
pub struct Scripted(Arc<AtomicUsize>);

impl Scripted {
    /// How often it happened.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}
