//! Answers that the server may still keep for itself.

use std::time::Duration;

use tokio::time::Instant;

/// Answers at a time that a quorum queue takes from a channel, and a few less. RabbitMQ keeps those beyond 32 in the channel
/// until the queue has written the ones before, tells nobody, and forgets them when the channel is closed.
const TAKEN: usize = 24;
/// How long it may take to write so many: a few rounds of the queue's log. Nothing in the protocol tells.
const WRITTEN: Duration = Duration::from_millis(300);
/// Most rounds that are waited for: a burst goes on while the first of it is being written.
const ROUNDS: usize = 3;

/// The answers that were given lately, in frames.
#[derive(Debug, Default)]
pub(crate) struct Burst {
    frames: usize,
    last: Option<Instant>,
}

impl Burst {
    /// So many answers were given now.
    pub(crate) fn gave(&mut self, frames: usize) {
        if frames == 0 {
            return;
        }
        let now = Instant::now();
        let since = self.last.map_or(Duration::ZERO, |last| now - last);
        let taken = TAKEN as u128 * since.as_micros() / WRITTEN.as_micros();
        self.frames = self.frames.saturating_sub(usize::try_from(taken).unwrap_or(usize::MAX)) + frames;
        self.last = Some(now);
    }

    /// Before when the channel is better not closed.
    pub(crate) fn over(&self) -> Option<Instant> {
        let rounds = (self.frames / (TAKEN + 1)).min(ROUNDS);
        self.last.filter(|_| rounds > 0).map(|last| last + WRITTEN * u32::try_from(rounds).unwrap_or(1))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn few_answers_are_never_waited_for() {
        let mut burst = Burst::default();
        for _ in 0..100 {
            burst.gave(TAKEN);
            assert_eq!(burst.over(), None);
            advance(WRITTEN + Duration::from_millis(1)).await;
        }
        // Nor is a stream that goes on for long.
        for _ in 0..100 {
            burst.gave(1);
            assert_eq!(burst.over(), None);
            advance(WRITTEN / 3).await;
        }
        advance(WRITTEN).await;
        burst.gave(0);
        burst.gave(TAKEN);
        burst.gave(1);
        assert_eq!(burst.over(), Some(Instant::now() + WRITTEN));
        burst.gave(1000);
        assert_eq!(burst.over(), Some(Instant::now() + WRITTEN * 3));
    }
}
