//! What keeps a message while it is worked on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::consumer::{AckToken, Answer};
use crate::delivery::Extended;
use crate::error::{Error, ErrorKind, Result};
use crate::lease::Fetch;

/// The shortest pause between two looks at a lease.
const LOOK: Duration = Duration::from_millis(10);

/// Watches over a message that was handed out: extends its lease, tells when it is lost. Answers nothing. Cheap to clone.
#[derive(Clone)]
pub struct Hold(pub(crate) Option<(Arc<Fetch>, u32, AckToken)>);

impl Hold {
    /// Keeps the message for at least this long from now. The library renews leases by itself up to
    /// `max_handler_time`; this is for work that takes longer.
    ///
    /// # Errors
    /// `LeaseLost` when the message is no longer ours; `Unsupported` when it is longer than the broker's longest
    /// lease; what the broker answers.
    ///
    /// # Cancel safety
    /// Dropped, the lease may be extended or not.
    pub async fn extend(&self, by: Duration) -> Result<Extended> {
        let lost = || Error::new(ErrorKind::LeaseLost, "the message is no longer ours").with_operation("extend");
        let (fetch, index, token) = self.0.as_ref().ok_or_else(lost)?;
        let inbox = &fetch.inbox;
        let Some(most) = inbox.capabilities.max_lease else {
            return if inbox.consumer.holds(*token) { Ok(Extended::WhileConnected) } else { Err(lost()) };
        };
        if by > most {
            return Err(Error::unsupported("the lease would be longer than this broker's longest")
                .with_operation("extend")
                .with_context("limit", format!("{most:?}")));
        }
        let until = Instant::now() + by;
        let settled = inbox.consumer.settle(vec![Answer::Extend(*token, by)]);
        if !settled.stale.is_empty() {
            return Err(lost());
        }
        if let Some(pending) = settled.pending
            && let Some((_, error)) = pending.await.into_iter().next()
        {
            return Err(error.with_operation("extend"));
        }
        fetch.set_extended(*index, until);
        Ok(Extended::Until(until))
    }

    /// Resolves when the message is no longer ours while the work on it still runs: its lease ran out, its connection or
    /// partition is gone. Cancel safe.
    pub async fn lost(&self) {
        let Some((fetch, index, token)) = &self.0 else { return };
        let inbox = &fetch.inbox;
        let mut events = inbox.client.events.listen();
        while inbox.consumer.holds(*token) {
            match fetch.until(*index) {
                Some(until) => tokio::select! {
                    _ = events.next() => {}
                    () = sleep_until(until.max(Instant::now() + LOOK)) => {}
                },
                None => drop(events.next().await),
            }
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}
