//! A concurrency that follows what handlers can take.

use std::time::Duration;

/// Adaptive concurrency: one more handler at a time while they are as quick as ever, a fifth less when they become slow or
/// fail for a time.
///
/// Slow is half more than they take at their best. The limit moves once a round, which is as many handlers as it counts. In one
/// round of 64 half as many run, which tells what their best is now: so a change for good is followed.
///
/// ```
/// use queue_worker::Adaptive;
/// let adaptive = Adaptive::new(4, 256);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Adaptive {
    pub(crate) min: usize,
    pub(crate) max: usize,
}

/// Slow is so many times the best.
const SLOW: f64 = 1.5;
/// So many failures are too many: more than one handler in five.
const MOST_FAILED: usize = 5;
/// Every so many rounds half as many handlers tell what their best is.
const PROBE: u32 = 64;

impl Adaptive {
    /// Between so many handlers at a time; starts at the least.
    #[must_use]
    pub fn new(min: usize, max: usize) -> Self {
        let min = min.max(1);
        Self { min, max: max.max(min) }
    }
}

/// An adaptive limit at work.
#[derive(Debug)]
pub(crate) struct Limit {
    bounds: Adaptive,
    limit: usize,
    /// Handlers of this round, the time of those that succeeded, and how many failed for a time.
    ended: usize,
    time: Duration,
    failed: usize,
    /// Whether the limit was reached in this round.
    full: bool,
    /// Seconds of a handler at its best.
    best: f64,
    rounds: u32,
    /// The limit before the probe that is under way.
    before: Option<usize>,
}

impl Limit {
    pub(crate) fn new(bounds: Adaptive) -> Self {
        Self {
            bounds,
            limit: bounds.min,
            ended: 0,
            time: Duration::ZERO,
            failed: 0,
            full: false,
            best: f64::INFINITY,
            rounds: 0,
            before: None,
        }
    }

    /// A handler ended; `running` counts it. The new limit at the end of a round.
    pub(crate) fn ended(&mut self, took: Duration, failed: bool, running: usize) -> Option<usize> {
        self.ended += 1;
        if failed {
            self.failed += 1;
        } else {
            self.time = self.time.saturating_add(took);
        }
        self.full |= running >= self.limit;
        if self.ended < self.limit {
            return None;
        }
        #[allow(clippy::cast_precision_loss, reason = "a count of handlers at a time")]
        let mean = match self.ended - self.failed {
            0 => None,
            succeeded => Some(self.time.as_secs_f64() / succeeded as f64),
        };
        self.limit = self.next(mean).clamp(self.bounds.min, self.bounds.max);
        (self.ended, self.time, self.failed, self.full) = (0, Duration::ZERO, 0, false);
        Some(self.limit)
    }

    fn next(&mut self, mean: Option<f64>) -> usize {
        self.rounds += 1;
        // Failures come sooner or later than successes, and tell nothing of the time.
        let mean = mean.unwrap_or(self.best);
        if let Some(before) = self.before.take() {
            self.best = mean;
            return before;
        }
        self.best = self.best.min(mean);
        if self.rounds.is_multiple_of(PROBE) {
            self.before = Some(self.limit);
            return self.limit / 2;
        }
        if self.failed * MOST_FAILED > self.ended || mean > self.best * SLOW {
            // A fifth less, and one at least.
            return (self.limit * 4 / 5).min(self.limit - 1);
        }
        self.limit + usize::from(self.full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(limit: &mut Limit, took: Duration, failed: bool) -> usize {
        loop {
            let running = limit.limit;
            if let Some(new) = limit.ended(took, failed, running) {
                return new;
            }
        }
    }

    #[test]
    fn it_grows_while_handlers_are_quick_and_shrinks_when_they_are_not() {
        let mut limit = Limit::new(Adaptive::new(2, 20));
        let (quick, slow) = (Duration::from_millis(5), Duration::from_millis(50));
        assert_eq!(round(&mut limit, quick, false), 3);
        for _ in 0..30 {
            round(&mut limit, quick, false);
        }
        assert_eq!(limit.limit, 20);
        assert_eq!(round(&mut limit, slow, false), 16);
        assert_eq!(round(&mut limit, quick, true), 12);
        for _ in 0..30 {
            round(&mut limit, slow, false);
        }
        assert_eq!(limit.limit, 2);
        // What is slow for good becomes what it takes.
        for _ in 0..128 {
            round(&mut limit, slow, false);
        }
        assert!(limit.limit > 10, "{}", limit.limit);
    }

    #[test]
    fn it_does_not_grow_unused() {
        let mut limit = Limit::new(Adaptive::new(2, 20));
        for _ in 0..100 {
            limit.ended(Duration::from_millis(5), false, 1);
        }
        assert_eq!(limit.limit, 2);
    }
}
