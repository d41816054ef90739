//! Control of a worker from elsewhere.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use queue_core::ReceiverControl;
use tokio::sync::watch;

use crate::counts::{Counters, Counts};
use crate::slots::Slots;

/// What a worker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Run,
    Pause,
    Stop,
}

/// What a worker does, and is told to do.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) wish: watch::Sender<Wish>,
    pub(crate) receiver: ReceiverControl,
    pub(crate) slots: Slots,
    pub(crate) counters: Counters,
    /// Whether the breaker is open.
    pub(crate) is_open: AtomicBool,
}

impl State {
    pub(crate) fn new(receiver: ReceiverControl) -> Arc<Self> {
        Arc::new(Self {
            wish: watch::Sender::new(Wish::Run),
            receiver,
            slots: Slots::new(1),
            counters: Counters::default(),
            is_open: AtomicBool::new(false),
        })
    }

    /// There is no way back from a stop.
    fn tell(&self, wish: Wish) {
        self.wish.send_if_modified(|told| {
            let changes = *told != Wish::Stop && *told != wish;
            if changes {
                *told = wish;
                match wish {
                    Wish::Run => self.receiver.resume(),
                    Wish::Pause | Wish::Stop => self.receiver.pause(),
                }
            }
            changes
        });
    }
}

/// Pauses, resumes and ends a worker from elsewhere, and tells what it does. Cheap to clone.
#[derive(Clone)]
pub struct Control(pub(crate) Arc<State>);

impl Control {
    /// Starts no more handlers and fetches nothing; those that run go on. What was fetched is given back as soon as a
    /// handler may start again, but for what waits for another try; on Kafka it stays, because nobody else is handed it.
    pub fn pause(&self) {
        self.0.tell(Wish::Pause);
    }

    /// Goes on after a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.0.tell(Wish::Run);
    }

    /// Begins the drain, as [`Worker::until`](crate::Worker::until) does. There is no way back.
    pub fn stop(&self) {
        self.0.tell(Wish::Stop);
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.counters.read()
    }

    /// How many handlers run; with batches, how many batches.
    #[must_use]
    pub fn running(&self) -> usize {
        self.0.slots.running()
    }

    /// How many handlers may run at once; moves with [`Adaptive`](crate::Adaptive).
    #[must_use]
    pub fn limit(&self) -> usize {
        self.0.slots.limit()
    }

    /// Whether the breaker is open: what handlers need is away.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.is_open.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("wish", &*self.0.wish.borrow())
            .field("running", &self.running())
            .field("counts", &self.counts())
            .finish()
    }
}
