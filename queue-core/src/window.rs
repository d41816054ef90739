//! How much of a sender is in flight.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Semaphore;

/// Keeps what senders write and what verdicts write off the same cache line: they run on different cores.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart<T>(T);

/// What senders write.
#[derive(Debug, Default)]
struct Taken {
    /// Bytes that were taken since the beginning.
    bytes: AtomicU64,
    /// What was given back when a sender last looked.
    seen: AtomicU64,
}

/// Bounds bytes in flight. Whoever waits for room gets it in the order of arrival.
///
/// Room is counted where senders and verdicts do not meet; while somebody waits, all of it goes to the queue of those that
/// wait, which hands it over without waiting for them to look.
#[derive(Debug)]
pub(crate) struct Window {
    size: u64,
    taken: Apart<Taken>,
    /// Bytes that were given back since the beginning.
    given: Apart<AtomicU64>,
    /// Those that wait; while there are any, nobody passes them.
    waiting: Apart<AtomicUsize>,
    /// Has permits while somebody waits; what comes here just when the last goes away is found by the next who waits.
    queue: Semaphore,
}

/// The window was closed.
#[derive(Debug)]
pub(crate) struct Closed;

struct Waits<'a>(&'a Window);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let Self(window) = self;
        if window.waiting.0.fetch_sub(1, Ordering::SeqCst) == 1 {
            window.give(window.queue.forget_permits(usize::MAX));
        }
    }
}

impl Window {
    pub(crate) fn new(size: u32) -> Self {
        Self {
            size: u64::from(size),
            taken: Apart::default(),
            given: Apart::default(),
            waiting: Apart::default(),
            queue: Semaphore::new(0),
        }
    }

    /// Takes room without waiting; false where there is none, or others wait for it.
    pub(crate) fn try_take(&self, bytes: u32) -> bool {
        let fits = |free| Some(u64::from(bytes)).filter(|bytes| *bytes <= free);
        bytes == 0 || self.waiting.0.load(Ordering::SeqCst) == 0 && self.grab(fits) > 0
    }

    /// Takes room, at most the whole window, as soon as there is.
    ///
    /// Dropped, nothing was taken.
    pub(crate) async fn take(&self, bytes: u32) -> Result<(), Closed> {
        self.waiting.0.fetch_add(1, Ordering::SeqCst);
        let _waits = Waits(self);
        self.hand_over();
        match self.queue.acquire_many(bytes).await {
            Ok(permits) => {
                permits.forget();
                Ok(())
            }
            Err(_) => Err(Closed),
        }
    }

    /// Takes as much of what is free as is wanted, and says how much that was.
    fn grab(&self, wanted: impl Fn(u64) -> Option<u64>) -> u64 {
        let Taken { bytes: taken, seen } = &self.taken.0;
        let mut before = taken.load(Ordering::SeqCst);
        loop {
            // More may have been taken, and given back, since `before` was read; then the exchange fails.
            let free = |given| self.size.saturating_sub(before.saturating_sub(given));
            let wanted = wanted(free(seen.load(Ordering::Relaxed))).or_else(|| {
                // Only now the line of the other side is looked at.
                let given = self.given.0.load(Ordering::SeqCst);
                seen.store(given, Ordering::Relaxed);
                wanted(free(given))
            });
            let Some(bytes) = wanted else { return 0 };
            match taken.compare_exchange_weak(before, before + bytes, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return bytes,
                Err(now) => before = now,
            }
        }
    }

    /// Gives room back.
    pub(crate) fn give(&self, bytes: usize) {
        self.given.0.fetch_add(bytes as u64, Ordering::SeqCst);
        // Whoever begins to wait takes what is free after it is known to wait: one of the two finds this.
        if self.waiting.0.load(Ordering::SeqCst) > 0 {
            self.hand_over();
        }
    }

    /// Everything that is free goes to those that wait.
    fn hand_over(&self) {
        loop {
            let free = self.grab(|free| Some(free).filter(|free| *free > 0));
            if free == 0 {
                return;
            }
            self.queue.add_permits(usize::try_from(free).unwrap_or(usize::MAX));
        }
    }

    /// Sends those away that wait.
    pub(crate) fn close(&self) {
        self.queue.close();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn who_waits_gets_room_in_the_order_of_arrival_and_nobody_passes() {
        let window = Window::new(10);
        assert!(window.try_take(6) && !window.try_take(5) && window.try_take(4));
        let (mut large, mut small) = (Box::pin(window.take(8)), Box::pin(window.take(1)));
        assert!((&mut large).now_or_never().is_none() && (&mut small).now_or_never().is_none());
        window.give(6);
        assert!((&mut large).now_or_never().is_none(), "6 of 8");
        assert!((&mut small).now_or_never().is_none(), "it has its turn behind the large one");
        assert!(!window.try_take(1), "others wait");
        window.give(4);
        (&mut small).now_or_never().unwrap().unwrap();
        (&mut large).now_or_never().unwrap().unwrap();
        drop((large, small));
        assert!(window.try_take(1) && !window.try_take(1));
    }

    #[tokio::test]
    async fn one_that_does_not_look_again_holds_nobody_up() {
        let window = Window::new(10);
        assert!(window.try_take(10));
        let (mut asleep, mut next) = (Box::pin(window.take(2)), Box::pin(window.take(2)));
        assert!((&mut asleep).now_or_never().is_none() && (&mut next).now_or_never().is_none());
        window.give(4);
        next.await.unwrap();
        // What it was given and did not take comes back.
        drop(asleep);
        assert!(window.try_take(2) && !window.try_take(1));
    }

    #[tokio::test]
    async fn one_that_goes_away_takes_nothing_and_lets_the_next_pass() {
        let window = Window::new(10);
        assert!(window.try_take(10));
        let (mut first, mut next) = (Box::pin(window.take(10)), Box::pin(window.take(10)));
        assert!((&mut first).now_or_never().is_none() && (&mut next).now_or_never().is_none());
        window.give(10);
        drop(first);
        next.await.unwrap();
        window.give(10);
        assert!(window.try_take(10));
    }

    #[tokio::test]
    async fn a_close_sends_everyone_away() {
        let window = Arc::new(Window::new(1));
        assert!(window.try_take(1));
        let wait = || {
            let window = window.clone();
            tokio::spawn(async move { window.take(1).await })
        };
        let waiting = [wait(), wait(), wait()];
        while window.waiting.0.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
        window.close();
        for one in waiting {
            one.await.unwrap().unwrap_err();
        }
    }

    #[test]
    fn threads_share_it_and_never_have_more_than_there_is() {
        const SIZE: u32 = 100;
        let window = Arc::new(Window::new(SIZE));
        let used = Arc::new(AtomicU64::new(0));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_time().build().unwrap();
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let (window, used) = (window.clone(), used.clone());
                runtime.spawn(async move {
                    for round in 0..2000 {
                        let bytes = 1 + (task * 7 + round) % SIZE;
                        if !window.try_take(bytes) {
                            window.take(bytes).await.unwrap();
                        }
                        let now = used.fetch_add(bytes.into(), Ordering::SeqCst) + u64::from(bytes);
                        assert!(now <= SIZE.into(), "{now}");
                        tokio::task::yield_now().await;
                        used.fetch_sub(bytes.into(), Ordering::SeqCst);
                        window.give(bytes as usize);
                    }
                })
            })
            .collect();
        runtime.block_on(async {
            for task in tasks {
                tokio::time::timeout(std::time::Duration::from_secs(60), task).await.unwrap().unwrap();
            }
        });
        assert!(window.try_take(SIZE), "all of it came back");
    }
}
