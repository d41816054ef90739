//! Leases: which messages this receiver holds, by which receipt, until when.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use queue_core::AckToken;
use tokio::time::Instant;

use crate::capabilities::MAX_LEASE;

/// Numbers every lease of the process, so that a token of another receiver is recognised.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// The most that is taken off a lease for the way of the answer from the broker to here.
const MAX_MARGIN: Duration = Duration::from_secs(3);

/// One message that the broker has leased to this receiver.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) receipt: String,
    pub(crate) bytes: usize,
    /// When it ends, unless extended; never later than the broker has it.
    pub(crate) expires: Instant,
    /// The broker hands the message out again at this time, whatever is extended.
    pub(crate) last: Instant,
    /// Whether it waits in the adapter and was not handed out.
    pub(crate) buffered: bool,
    /// Whether an extension that the adapter itself asked for is under way.
    pub(crate) extending: bool,
    /// Whether it is being sent on: it is given back only when that has failed.
    pub(crate) hopping: bool,
}

impl Lease {
    /// A lease that the broker granted for `time` in an answer that arrived now, to a request sent at `sent` that
    /// waited `wait` at most.
    ///
    /// The broker's clock started when it took the message from the queue: after the wait at the latest, and a little
    /// before the answer arrived. A tenth of the lease is allowed for that little.
    pub(crate) fn granted(receipt: String, bytes: usize, time: Duration, sent: Instant, wait: Duration) -> Self {
        let margin = (time / 10).min(MAX_MARGIN);
        let began = Instant::now().min(sent + wait + margin);
        Self {
            receipt,
            bytes,
            expires: began + time - margin,
            last: began + MAX_LEASE - margin,
            buffered: true,
            extending: false,
            hopping: false,
        }
    }
}

#[derive(Debug)]
struct Slot {
    generation: u64,
    lease: Option<Lease>,
}

/// The leases of one receiver.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    slots: Vec<Slot>,
    free: Vec<usize>,
    held: usize,
    bytes: usize,
}

impl Leases {
    /// How many messages are held: buffered, and handed out without an answer.
    pub(crate) fn len(&self) -> usize {
        self.held
    }

    /// The bytes of those.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn insert(&mut self, lease: Lease) -> AckToken {
        let generation = NEXT.fetch_add(1, Ordering::Relaxed);
        self.held += 1;
        self.bytes += lease.bytes;
        let slot = Slot { generation, lease: Some(lease) };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        AckToken(index as u64, generation)
    }

    /// The lease behind a token that is not stale.
    pub(crate) fn get(&mut self, token: AckToken, now: Instant) -> Option<&mut Lease> {
        let index = usize::try_from(token.0).ok()?;
        let slot = self.slots.get_mut(index).filter(|s| s.generation == token.1)?;
        slot.lease.as_mut().filter(|l| l.expires > now)
    }

    /// Ends the lease behind a token that is not stale.
    pub(crate) fn take(&mut self, token: AckToken, now: Instant) -> Option<Lease> {
        self.get(token, now)?;
        self.remove(usize::try_from(token.0).ok()?)
    }

    fn remove(&mut self, index: usize) -> Option<Lease> {
        let lease = self.slots.get_mut(index)?.lease.take()?;
        self.free.push(index);
        self.held -= 1;
        self.bytes -= lease.bytes;
        Some(lease)
    }

    /// Lets go of leases that have run out; says how many.
    pub(crate) fn sweep(&mut self) -> usize {
        let now = Instant::now();
        let before = self.held;
        for index in 0..self.slots.len() {
            if self.slots[index].lease.as_ref().is_some_and(|l| l.expires <= now) {
                self.remove(index);
            }
        }
        before - self.held
    }

    /// Every token that is not stale.
    pub(crate) fn tokens(&self) -> Vec<AckToken> {
        let own = |slot: &Slot| slot.lease.as_ref().is_some_and(|lease| !lease.hopping);
        let held = self.slots.iter().enumerate().filter(|(_, slot)| own(slot));
        held.map(|(index, slot)| AckToken(index as u64, slot.generation)).collect()
    }

    /// Marks buffered leases that end before `limit` as being extended, and names them.
    pub(crate) fn begin_extending(&mut self, limit: Instant) -> Vec<AckToken> {
        let mut tokens = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(lease) = &mut slot.lease
                && lease.buffered
                && !lease.extending
                && lease.expires < limit
            {
                lease.extending = true;
                tokens.push(AckToken(index as u64, slot.generation));
            }
        }
        tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(time: Duration) -> Lease {
        Lease::granted("r".to_owned(), 7, time, Instant::now(), Duration::ZERO)
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_stale_after_its_answer_and_after_its_lease() {
        let mut leases = Leases::default();
        let (a, b) = (leases.insert(lease(Duration::from_secs(30))), leases.insert(lease(Duration::from_secs(1))));
        assert_eq!((leases.len(), leases.bytes()), (2, 14));
        assert!(leases.take(a, Instant::now()).is_some() && leases.take(a, Instant::now()).is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(leases.take(b, Instant::now()).is_none());
        assert_eq!((leases.sweep(), leases.len(), leases.bytes()), (1, 0, 0));
        let c = leases.insert(lease(Duration::from_secs(30)));
        let now = Instant::now();
        assert!([a, b].iter().all(|t| leases.get(*t, now).is_none()) && leases.get(c, now).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_never_outlives_the_brokers() {
        for (time, wait) in [(30, 0), (30, 20), (6, 1), (2, 0), (2, 20), (1, 1)] {
            let (time, wait) = (Duration::from_secs(time), Duration::from_secs(wait));
            let sent = Instant::now();
            // The answer was on its way for long: the wait was over 24 s before it arrived.
            tokio::time::advance(wait + Duration::from_secs(24)).await;
            let lease = Lease::granted(String::new(), 0, time, sent, wait);
            assert!(lease.expires <= sent + wait + time, "{time:?} after {wait:?}");
        }
    }
}
