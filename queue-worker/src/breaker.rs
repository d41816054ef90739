//! Pausing while what handlers need is away.

use std::time::Duration;

use tokio::time::Instant;

use crate::retry::Backoff;
use crate::run::far;

/// A circuit breaker: after so many failures in a row the worker pauses instead of burning attempts; after the pause one
/// message tries whether it works again.
///
/// It opens at once at [`Failure::unavailable`](crate::Failure::unavailable), whose message is not to blame. While it is
/// open, what fails for a time is not counted as an attempt, and is tried again after the pause. What was fetched stays with
/// the worker, leased; the next to try is another one than the last where the receiver has room for one, so that a message of its
/// own fault does not keep the breaker open while others would be processed.
///
/// ```
/// # use std::time::Duration;
/// use queue_worker::Breaker;
/// let breaker = Breaker::new(20).pause(Duration::from_secs(1), Duration::from_secs(30));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Breaker {
    failures: u32,
    pause: Backoff,
}

impl Breaker {
    /// Opens after this many temporary failures in a row, at least one. Pauses 1 s to 60 s unless told otherwise.
    #[must_use]
    pub fn new(failures: u32) -> Self {
        let pause = Backoff::new(Duration::from_secs(1), Duration::from_secs(60)).jitter(0.2);
        Self { failures: failures.max(1), pause }
    }

    /// The first pause, which doubles each time the try after it fails, and the longest.
    #[must_use]
    pub fn pause(mut self, min: Duration, max: Duration) -> Self {
        self.pause = Backoff::new(min, max).jitter(0.2);
        self
    }
}

/// How a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stand {
    Closed,
    /// Nothing starts until then.
    Open(Instant),
    /// One message tries whether it works again, as soon as there is one.
    Trying {
        begun: bool,
    },
}

/// What a breaker makes of the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Yes,
    /// Look again at this moment.
    NotBefore(Instant),
    /// Look again when the breaker stands otherwise.
    NotNow,
}

/// A breaker at work.
#[derive(Debug)]
pub(crate) struct Circuit {
    breaker: Breaker,
    stand: Stand,
    /// Temporary failures in a row.
    failures: u32,
    /// How often it opened since something succeeded.
    opened: u32,
    /// How often one tried. What began before says nothing of how things are now.
    tries: u32,
}

/// What a failure comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The message's.
    Own,
    /// Not the message's: it is tried again then.
    None(Instant),
}

impl Circuit {
    pub(crate) fn new(breaker: Breaker) -> Self {
        Self { breaker, stand: Stand::Closed, failures: 0, opened: 0, tries: 0 }
    }

    /// Whether the next message may start.
    pub(crate) fn pass(&mut self) -> Pass {
        match self.stand {
            Stand::Closed | Stand::Trying { begun: false } => Pass::Yes,
            Stand::Open(until) if Instant::now() < until => Pass::NotBefore(until),
            Stand::Open(_) => {
                self.stand = Stand::Trying { begun: false };
                self.tries = self.tries.wrapping_add(1);
                Pass::Yes
            }
            Stand::Trying { begun: true } => Pass::NotNow,
        }
    }

    /// A handler starts; its result is told with this number.
    pub(crate) fn begin(&mut self) -> u32 {
        if let Stand::Trying { begun } = &mut self.stand {
            *begun = true;
        }
        self.tries
    }

    pub(crate) fn is_open(&self) -> bool {
        self.stand != Stand::Closed
    }

    pub(crate) fn succeeded(&mut self, try_number: u32) {
        if try_number != self.tries {
            return;
        }
        self.failures = 0;
        if matches!(self.stand, Stand::Trying { .. }) {
            tracing::info!("the breaker closes: a message was processed");
            self.stand = Stand::Closed;
            self.opened = 0;
        }
    }

    /// A handler ended with neither: it was dropped, or its message is to blame.
    pub(crate) fn ended(&mut self, try_number: u32) {
        if try_number == self.tries
            && let Stand::Trying { begun } = &mut self.stand
        {
            // Another one tries.
            *begun = false;
        }
    }

    /// Something failed for a time.
    pub(crate) fn failed(&mut self, try_number: u32, unavailable: bool) -> Blame {
        match self.stand {
            Stand::Open(until) => return Blame::None(until),
            // It began before the breaker opened.
            _ if try_number != self.tries => return Blame::None(Instant::now()),
            Stand::Trying { .. } => {}
            Stand::Closed if unavailable || self.failures + 1 >= self.breaker.failures => {}
            Stand::Closed => {
                self.failures += 1;
                return Blame::Own;
            }
        }
        self.failures = self.failures.saturating_add(1);
        self.opened = self.opened.saturating_add(1);
        let pause = self.breaker.pause.pause(self.opened);
        tracing::warn!(failures = self.failures, ?pause, "the breaker opens");
        let until = far(Instant::now(), pause);
        self.stand = Stand::Open(until);
        Blame::None(until)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn circuit(failures: u32) -> Circuit {
        Circuit::new(Breaker::new(failures).pause(SECOND, 4 * SECOND))
    }

    #[tokio::test(start_paused = true)]
    async fn only_failures_in_a_row_open_it() {
        let mut circuit = circuit(3);
        for _ in 0..10 {
            assert_eq!(circuit.failed(0, false), Blame::Own);
            assert_eq!(circuit.failed(0, false), Blame::Own);
            circuit.succeeded(0);
        }
        assert_eq!(circuit.failed(0, false), Blame::Own);
        assert_eq!(circuit.failed(0, false), Blame::Own);
        assert!(!circuit.is_open());
        assert!(matches!(circuit.failed(0, false), Blame::None(_)));
        assert!(circuit.is_open());
        assert!(matches!(circuit.pass(), Pass::NotBefore(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_message_tries_and_those_from_before_say_nothing() {
        let mut circuit = circuit(3);
        let old = circuit.begin();
        assert!(matches!(circuit.failed(old, true), Blame::None(_)));
        circuit.succeeded(old);
        assert!(circuit.is_open(), "a success from before closes nothing");
        advance(SECOND).await;
        // Until there is a message.
        assert_eq!(circuit.pass(), Pass::Yes);
        assert_eq!(circuit.pass(), Pass::Yes);
        let trial = circuit.begin();
        assert_eq!(circuit.pass(), Pass::NotNow);
        circuit.succeeded(old);
        assert!(matches!(circuit.failed(old, true), Blame::None(_)));
        assert_eq!(circuit.pass(), Pass::NotNow, "nor does a result from before");
        assert!(matches!(circuit.failed(trial, true), Blame::None(_)));
        advance(SECOND).await;
        assert!(matches!(circuit.pass(), Pass::NotBefore(_)), "the pause doubles");
        advance(SECOND).await;
        assert_eq!(circuit.pass(), Pass::Yes);
        let trial = circuit.begin();
        circuit.succeeded(trial);
        assert_eq!(circuit.pass(), Pass::Yes);
        assert!(!circuit.is_open());
        // It begins anew.
        assert!(matches!(circuit.failed(trial, true), Blame::None(_)));
        advance(SECOND).await;
        assert_eq!(circuit.pass(), Pass::Yes);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_that_is_dropped_leaves_the_try_to_another() {
        let mut circuit = circuit(1);
        assert!(matches!(circuit.failed(0, false), Blame::None(_)));
        advance(SECOND).await;
        assert_eq!(circuit.pass(), Pass::Yes);
        let trial = circuit.begin();
        assert_eq!(circuit.pass(), Pass::NotNow);
        circuit.ended(trial);
        assert_eq!(circuit.pass(), Pass::Yes);
    }
}
