//! When a failed message is tried again.

use std::time::Duration;

use crate::failure::Failure;

/// What becomes of a message that failed for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retry {
    /// It is tried again after the receiver's own backoff.
    Default,
    /// It is tried again after this delay at the earliest.
    After(Duration),
    /// It is a dead letter, whatever attempts are left.
    DeadLetter,
}

/// Says when a failed message is tried again: a [`Backoff`], or a function of the attempt and the failure.
///
/// How many attempts there are is the receiver's `max_deliveries`.
pub trait RetryPolicy: Send + Sync + 'static {
    /// What becomes of a message after this failed attempt, counted from 1.
    fn retry(&self, attempt: u32, failure: &Failure) -> Retry;
}

impl<F: Fn(u32, &Failure) -> Retry + Send + Sync + 'static> RetryPolicy for F {
    fn retry(&self, attempt: u32, failure: &Failure) -> Retry {
        self(attempt, failure)
    }
}

/// A pause that doubles with each attempt, up to a longest one, of which a share is left to chance.
///
/// ```
/// # use std::time::Duration;
/// use queue_worker::Backoff;
/// let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60)).jitter(1.0);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    jitter: f64,
}

/// Longer is never waited.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

impl Backoff {
    /// From `min` after the first attempt to `max`. Half of each pause is left to chance.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), jitter: 0.5 }
    }

    /// The share of a pause that is left to chance: 0 is none, 1 is all of it. Default: 0.5.
    #[must_use]
    pub fn jitter(mut self, share: f64) -> Self {
        // What is no number is none.
        self.jitter = share.max(0.0).min(1.0);
        self
    }

    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        let whole = self.min.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(self.max).min(LONGEST);
        whole.mul_f64(1.0 - self.jitter * fastrand::f64())
    }
}

impl RetryPolicy for Backoff {
    fn retry(&self, attempt: u32, _: &Failure) -> Retry {
        Retry::After(self.pause(attempt))
    }
}

/// The receiver's own backoff.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceiversOwn;

impl RetryPolicy for ReceiversOwn {
    fn retry(&self, _: u32, _: &Failure) -> Retry {
        Retry::Default
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backoff_doubles_up_to_its_longest() {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10)).jitter(0.0);
        let pauses: Vec<_> = (1..=6).map(|attempt| backoff.pause(attempt).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 10]);
        assert_eq!(backoff.pause(u32::MAX).as_secs(), 10);
        let endless = Backoff::new(Duration::MAX, Duration::MAX).jitter(f64::NAN);
        assert_eq!(endless.pause(3), LONGEST);
        for _ in 0..100 {
            let pause = backoff.jitter(0.5).pause(3);
            assert!((Duration::from_secs(2)..=Duration::from_secs(4)).contains(&pause), "{pause:?}");
        }
    }
}
