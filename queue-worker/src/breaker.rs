//! Pausing while what handlers need is away.

use std::time::Duration;

use tokio::time::Instant;

use crate::retry::Backoff;

/// A circuit breaker: after so many failures in a row the worker pauses instead of burning attempts; after the pause one
/// message tries whether it works again.
///
/// It opens at once at [`Failure::unavailable`](crate::Failure::unavailable), whose message is not to blame. While it is
/// open, what fails for a time is given back, not counted as an attempt where the broker can tell.
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
    /// One message tries whether it works again.
    Trying,
}

/// What a breaker makes of the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Yes,
    /// Look again at this moment.
    NotBefore(Instant),
    /// Look again when something ended.
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
}

impl Circuit {
    pub(crate) fn new(breaker: Breaker) -> Self {
        Self { breaker, stand: Stand::Closed, failures: 0, opened: 0 }
    }

    /// Whether the next message may start; `running` others do.
    pub(crate) fn pass(&mut self, running: usize) -> Pass {
        match self.stand {
            Stand::Closed => Pass::Yes,
            Stand::Open(until) if Instant::now() < until => Pass::NotBefore(until),
            // Those from before say nothing new.
            Stand::Open(_) | Stand::Trying if running > 0 => Pass::NotNow,
            Stand::Open(_) | Stand::Trying => {
                self.stand = Stand::Trying;
                Pass::Yes
            }
        }
    }

    /// Whether it is still open.
    pub(crate) fn succeeded(&mut self) -> bool {
        self.failures = 0;
        // A success of one that started before it opened closes nothing.
        if self.stand == Stand::Trying {
            tracing::info!("the breaker closes: a message was processed");
            self.stand = Stand::Closed;
            self.opened = 0;
        }
        self.stand != Stand::Closed
    }

    /// Something failed for a time. Whether the breaker is open now, so that it is not the message's fault.
    pub(crate) fn failed(&mut self, unavailable: bool) -> bool {
        self.failures = self.failures.saturating_add(1);
        let opens = match self.stand {
            Stand::Open(_) => return true,
            Stand::Trying => true,
            Stand::Closed => unavailable || self.failures >= self.breaker.failures,
        };
        if opens {
            self.opened = self.opened.saturating_add(1);
            let pause = self.breaker.pause.pause(self.opened);
            tracing::warn!(failures = self.failures, ?pause, "the breaker opens");
            self.stand = Stand::Open(Instant::now() + pause);
        }
        opens
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
            assert!(!circuit.failed(false));
            assert!(!circuit.failed(false));
            assert!(!circuit.succeeded());
        }
        assert!(!circuit.failed(false));
        assert!(!circuit.failed(false));
        assert!(circuit.failed(false));
        assert!(matches!(circuit.pass(0), Pass::NotBefore(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn one_message_tries_when_the_others_are_through() {
        let mut circuit = circuit(3);
        assert!(circuit.failed(true));
        // Says nothing of how things are now.
        assert!(circuit.succeeded());
        advance(SECOND).await;
        assert_eq!(circuit.pass(2), Pass::NotNow);
        assert_eq!(circuit.pass(0), Pass::Yes);
        assert_eq!(circuit.pass(1), Pass::NotNow);
        assert!(circuit.failed(false));
        advance(SECOND).await;
        assert!(matches!(circuit.pass(0), Pass::NotBefore(_)), "the pause doubles");
        advance(SECOND).await;
        assert_eq!(circuit.pass(0), Pass::Yes);
        assert!(!circuit.succeeded());
        assert_eq!(circuit.pass(1), Pass::Yes);
        // It begins anew.
        assert!(circuit.failed(true));
        advance(SECOND).await;
        assert_eq!(circuit.pass(0), Pass::Yes);
    }
}
