//! How the threads of this crate are woken.

use std::time::Duration;

use crate::sync::{Condvar, Mutex};

/// Wakes a thread that waits.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn raise(&self) {
        *self.raised.lock() = true;
        self.changed.notify_one();
    }

    /// Waits until it is raised or the time is over, and lowers it.
    pub(crate) fn wait(&self, within: Duration) {
        let mut raised = self.raised.lock();
        if !*raised {
            self.changed.wait_for(&mut raised, within);
        }
        *raised = false;
    }
}
