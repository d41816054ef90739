//! When a channel that refuses messages is opened again.
//!
//! A channel of RabbitMQ 3.10 that first publishes to a quorum queue while that has no leader refuses everything from then
//! on, until the node of the former leader is back. Another channel does not. From outside it looks like a queue that is
//! full, where another channel does no harm.

use std::time::Duration;

use tokio::time::Instant;

/// How often a channel is opened again for that, at most.
const EVERY: Duration = Duration::from_secs(1);
/// How long what is in flight may take to be answered first: some round trips.
const DRAIN: Duration = Duration::from_millis(200);
/// When that is tried again after it took longer. Who has no answer for so long may never have one, and the others wait
/// meanwhile.
const STUCK: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Renewal {
    /// Until when nothing is published.
    drain: Option<Instant>,
    /// Not before.
    next: Instant,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Renew {
    No,
    /// When what is in flight has been answered; nothing is published until then.
    Drained,
    Now,
}

impl Renewal {
    pub(crate) fn new() -> Self {
        Self { drain: None, next: Instant::now() }
    }

    /// What to do with a channel, by whether it refused a message and whether nothing is in flight.
    pub(crate) fn of(&mut self, refused: bool, drained: bool) -> Renew {
        if !refused {
            self.drain = None;
            return Renew::No;
        }
        let now = Instant::now();
        if self.drain.is_none() && now >= self.next {
            self.drain = Some(now + DRAIN);
        }
        let Some(until) = self.drain else { return Renew::No };
        if !drained && now < until {
            return Renew::Drained;
        }
        self.drain = None;
        self.next = now + if drained { EVERY } else { STUCK };
        if drained { Renew::Now } else { Renew::No }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_channel_is_renewed_when_it_refused_and_is_drained() {
        let mut renewal = Renewal::new();
        assert_eq!(renewal.of(false, true), Renew::No);
        assert_eq!(renewal.of(true, false), Renew::Drained);
        assert_eq!(renewal.of(true, true), Renew::Now);
        // The next one refuses too.
        assert_eq!(renewal.of(true, true), Renew::No, "once a second");
        advance(EVERY).await;
        assert_eq!(renewal.of(true, true), Renew::Now);
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_without_an_answer_holds_up_the_others_for_a_moment_and_rarely() {
        let mut renewal = Renewal::new();
        assert_eq!(renewal.of(true, false), Renew::Drained);
        advance(DRAIN).await;
        assert_eq!(renewal.of(true, false), Renew::No);
        advance(EVERY).await;
        assert_eq!(renewal.of(true, false), Renew::No);
        advance(STUCK).await;
        assert_eq!(renewal.of(true, false), Renew::Drained);
        // The connection is another one meanwhile.
        assert_eq!(renewal.of(false, true), Renew::No);
        assert_eq!(renewal.of(true, true), Renew::Now);
    }
}
