//! Leases: which deliveries are open, and their renewal at half time.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::consumer::{AckToken, Answer, Received};
use crate::event::EventKind;
use crate::inbox::Inbox;

/// Emptied vectors that are kept for the next fetch.
const SPARE_VECTORS: usize = 4;

/// What was fetched in one go; every delivery of it shares this.
pub(crate) struct Fetch {
    pub(crate) inbox: Arc<Inbox>,
    leased: Option<Leased>,
}

struct Leased {
    tokens: Box<[AckToken]>,
    /// A bit per token: set when it is answered.
    closed: Box<[AtomicU64]>,
    fetched: Instant,
    until: Mutex<Instant>,
    /// Those that were extended one by one.
    extended: Mutex<Vec<(u32, Instant)>>,
}

impl fmt::Debug for Fetch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fetch").field("source", &self.inbox.source).finish_non_exhaustive()
    }
}

impl Fetch {
    pub(crate) fn close(&self, index: u32) {
        if let Some(leased) = &self.leased
            && let Some(word) = leased.closed.get(index as usize / 64)
        {
            word.fetch_or(1 << (index % 64), Ordering::AcqRel);
        }
    }

    /// The tokens of the whole fetch, where they are kept.
    pub(crate) fn tokens(&self) -> Option<&[AckToken]> {
        self.leased.as_ref().map(|l| &*l.tokens)
    }

    /// When the lease of a delivery of the fetch ends; `None` where it is held while connected.
    pub(crate) fn until(&self, index: u32) -> Option<Instant> {
        self.leased.as_ref().map(|l| l.extended(index).max(Some(*l.until.lock())).unwrap_or_else(Instant::now))
    }

    /// One delivery was extended; its neighbours are renewed as before.
    pub(crate) fn set_extended(&self, index: u32, until: Instant) {
        if let Some(leased) = &self.leased {
            let mut extended = leased.extended.lock();
            extended.retain(|(i, _)| *i != index);
            extended.push((index, until));
        }
    }

    pub(crate) fn set_until(&self, until: Instant) {
        if let Some(leased) = &self.leased {
            let mut current = leased.until.lock();
            *current = until.max(*current);
        }
    }
}

impl Leased {
    fn extended(&self, index: u32) -> Option<Instant> {
        self.extended.lock().iter().find(|(i, _)| *i == index).map(|(_, until)| *until)
    }

    /// The tokens that are not answered, and whether each was extended beyond `until`.
    fn open(&self, until: Instant) -> Vec<(AckToken, bool)> {
        let extended = |i: usize| {
            let list = self.extended.lock();
            list.iter().any(|(index, at)| *index as usize == i && *at >= until)
        };
        let is_open = |i: usize| self.closed[i / 64].load(Ordering::Acquire) >> (i % 64) & 1 == 0;
        self.tokens.iter().enumerate().filter(|(i, _)| is_open(*i)).map(|(i, t)| (*t, extended(i))).collect()
    }
}

/// The fetches of a receiver whose leases have to be renewed.
pub(crate) struct Ledger {
    leased: bool,
    lease: Duration,
    max_handler_time: Duration,
    fetches: Mutex<VecDeque<(Instant, Weak<Fetch>)>>,
    /// Wakes the renewal: an earlier lease, or the end.
    changed: Arc<Notify>,
    spare: Mutex<Vec<Vec<Received>>>,
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("lease", &self.lease).finish_non_exhaustive()
    }
}

impl Ledger {
    pub(crate) fn new(leased: bool, lease: Duration, max_handler_time: Duration) -> Self {
        Self {
            leased,
            lease,
            max_handler_time,
            fetches: Mutex::default(),
            changed: Arc::new(Notify::new()),
            spare: Mutex::default(),
        }
    }

    pub(crate) fn vec(&self) -> Vec<Received> {
        self.spare.lock().pop().unwrap_or_default()
    }

    pub(crate) fn reuse(&self, mut vec: Vec<Received>) {
        vec.clear();
        let mut spare = self.spare.lock();
        if spare.len() < SPARE_VECTORS {
            spare.push(vec);
        }
    }

    /// Registers what was fetched.
    pub(crate) fn open(&self, inbox: &Arc<Inbox>, received: &[Received]) -> Arc<Fetch> {
        let until = received.iter().filter_map(|r| r.lease).min().filter(|_| self.leased);
        let leased = until.map(|until| Leased {
            tokens: received.iter().map(|r| r.token).collect(),
            closed: (0..received.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            fetched: Instant::now(),
            until: Mutex::new(until),
            extended: Mutex::default(),
        });
        let fetch = Arc::new(Fetch { inbox: inbox.clone(), leased });
        #[cfg(feature = "otel")]
        inbox.ages().fetched(&fetch);
        if let Some(leased) = &fetch.leased {
            self.schedule(leased.fetched, *leased.until.lock(), Arc::downgrade(&fetch));
        }
        fetch
    }

    fn schedule(&self, now: Instant, until: Instant, fetch: Weak<Fetch>) {
        let due = now + until.saturating_duration_since(now) / 2;
        let mut fetches = self.fetches.lock();
        while fetches.front().is_some_and(|(_, f)| f.strong_count() == 0) {
            fetches.pop_front();
        }
        if fetches.len() > 1024 && fetches.len().is_power_of_two() {
            // One that is held long must not keep those behind it in memory.
            fetches.retain(|(_, f)| f.strong_count() > 0);
        }
        // Mostly the last; leases may be of different lengths.
        let at = fetches.iter().rposition(|(other, _)| *other <= due).map_or(0, |i| i + 1);
        fetches.insert(at, (due, fetch));
        drop(fetches);
        if at == 0 {
            self.changed.notify_one();
        }
    }

    /// Fetches that are due, and when the next is.
    fn due(&self, now: Instant) -> (Vec<Arc<Fetch>>, Option<Instant>) {
        let mut due = Vec::new();
        let mut fetches = self.fetches.lock();
        while let Some((at, fetch)) = fetches.front() {
            match fetch.upgrade() {
                Some(_) if *at > now => return (due, Some(*at)),
                live => {
                    due.extend(live);
                    fetches.pop_front();
                }
            }
        }
        (due, None)
    }
}

/// Renews leases until the inbox is gone.
pub(crate) async fn renew(weak: Weak<Inbox>) {
    loop {
        let Some(inbox) = weak.upgrade() else { return };
        let now = Instant::now();
        let (due, next) = inbox.ledger.due(now);
        let most = inbox.capabilities.max_lease.unwrap_or(Duration::MAX).min(inbox.ledger.max_handler_time);
        for fetch in due {
            let Some(leased) = &fetch.leased else { continue };
            let left = most.saturating_sub(now - leased.fetched);
            let lease = inbox.ledger.lease.min(left);
            let open = leased.open(now + lease);
            // Nothing is gained by an extension that ends before the present lease does.
            if open.is_empty() || now + lease <= *leased.until.lock() {
                continue;
            }
            let answers: Vec<_> = open
                .into_iter()
                .filter(|(_, extended)| !extended)
                .map(|(token, _)| Answer::Extend(token, lease))
                .collect();
            let settled = inbox.consumer.settle(answers);
            fetch.set_until(now + lease);
            inbox.ledger.schedule(now, now + lease, Arc::downgrade(&fetch));
            if let Some(pending) = settled.pending {
                let (events, source) = (inbox.client.events.clone(), inbox.source.to_string());
                tokio::spawn(async move {
                    for (_, error) in pending.await {
                        events.emit(EventKind::AnswerFailed, &source, Some(error));
                    }
                });
            }
        }
        // Holds neither the inbox nor a fetch while it waits.
        let changed = inbox.ledger.changed.clone();
        drop(inbox);
        match next {
            Some(at) => tokio::select! { () = sleep_until(at) => {}, () = changed.notified() => {} },
            None => changed.notified().await,
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}
