//! What was done so far, counted by everybody at once.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a worker did so far.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> Counts {
                Counts { $($name: self.$name.0.load(Relaxed),)* }
            }
        }
    };
}

counts! {
    /// Messages whose handler succeeded.
    processed,
    /// Handlers that failed, each attempt counted; those that panicked or ran out of time among them.
    failed,
    /// Messages that a failure made dead letters.
    dead_lettered,
    /// Messages given back: not worked on, or not finished by the end of the drain.
    released,
    /// Messages that wait for what they need, not counted as attempts: their handlers said that it is away, or failed while the
    /// breaker was open. Each time is counted.
    postponed,
    /// Answers that came too late: the message was no longer ours, and comes again.
    lost,
    /// Requests that were not worked on, because nobody waited for the reply any more.
    expired,
    /// Handlers that panicked.
    panicked,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.add_all(1);
    }

    pub(crate) fn add_all(&self, count: usize) {
        self.0.fetch_add(count as u64, Relaxed);
    }
}
