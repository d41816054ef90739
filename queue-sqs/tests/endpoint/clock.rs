//! The endpoint's clock: that of the runtime, and what a test lets pass on top of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Clock {
    started: Instant,
    /// Since 1970, at the start.
    epoch: Duration,
    ahead: Mutex<Duration>,
}

impl Clock {
    pub fn new() -> Self {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), epoch, ahead: Mutex::default() }
    }

    pub fn now(&self) -> Instant {
        Instant::now() + *self.ahead.lock()
    }

    /// When it is `at` by the clock of the runtime, if nothing more is let pass.
    pub fn real(&self, at: Instant) -> Instant {
        at.checked_sub(*self.ahead.lock()).unwrap_or(self.started)
    }

    /// A time as milliseconds since 1970.
    pub fn unix_millis(&self, at: Instant) -> u128 {
        (self.epoch + at.saturating_duration_since(self.started)).as_millis()
    }

    pub fn pass(&self, time: Duration) {
        *self.ahead.lock() += time;
    }
}
