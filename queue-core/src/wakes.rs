//! Those who wait for verdicts are woken together.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Most that wait to be woken.
const MOST: usize = 64;

thread_local! {
    /// Those who are to be woken when the outermost [`together`] of this thread ends; `None` outside of one.
    static LATER: RefCell<Option<Vec<Waker>>> = const { RefCell::new(None) };
}

/// Gives verdicts, and wakes those who wait for them when all are given: whoever awaits one after the other is woken
/// once and finds many, where it would be woken by the first, find a few, and wait again. For adapters.
///
/// `work` gives verdicts that are there already, and never waits for more: nobody is woken meanwhile, but for every 64 of
/// those who wait.
///
/// ```
/// use queue_core::{Completion, Receipt, together};
///
/// # let (sent, _verdicts): (Vec<Completion>, Vec<_>) = (0..3).map(|_| Completion::new(1)).unzip();
/// // The broker has confirmed all of these at once.
/// together(|| sent.iter().for_each(|message| message.accept(0, Receipt::accepted())));
/// ```
pub fn together<T>(work: impl FnOnce() -> T) -> T {
    let _scope = Scope::enter();
    work()
}

/// Wakes now, or when the verdicts are given.
pub(crate) fn wake(waker: Waker) {
    let mut waker = Some(waker);
    // A thread that ends has none any more.
    let full = LATER.try_with(|later| {
        let mut later = later.borrow_mut();
        let later = later.as_mut()?;
        later.extend(waker.take());
        (later.len() > MOST).then(|| std::mem::take(later))
    });
    // Without the borrow: a waker may do anything.
    wake_all(full.ok().flatten().into_iter().flatten().chain(waker));
}

/// A waker that panics keeps nobody from being woken: nothing else would wake them. The panic is told by its hook; the log
/// may be what panicked.
fn wake_all(wakers: impl Iterator<Item = Waker>) {
    for waker in wakers {
        let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
    }
}

struct Scope {
    outermost: bool,
}

impl Scope {
    fn enter() -> Self {
        let outermost = LATER.with_borrow_mut(|later| later.is_none() && later.insert(Vec::new()).is_empty());
        Self { outermost }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        if self.outermost {
            let later = LATER.with_borrow_mut(Option::take);
            wake_all(later.into_iter().flatten());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Panics;

    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("while it is woken");
        }
    }

    #[test]
    fn a_waker_that_panics_keeps_nobody_waiting() {
        let count = Arc::new(Count::default());
        together(|| {
            wake(Arc::new(Panics).into());
            wake(count.clone().into());
        });
        wake(Arc::new(Panics).into());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn wakes_wait_for_the_end_of_the_outermost() {
        let count = Arc::new(Count::default());
        let woken = || count.0.load(Ordering::Relaxed);
        together(|| {
            wake(count.clone().into());
            together(|| wake(count.clone().into()));
            assert_eq!(woken(), 0);
        });
        assert_eq!(woken(), 2);
        wake(count.clone().into());
        assert_eq!(woken(), 3);
    }

    #[test]
    fn many_are_not_kept_waiting_and_a_panic_forgets_none() {
        let count = Arc::new(Count::default());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            together(|| {
                (0..=MOST).for_each(|_| wake(count.clone().into()));
                assert_eq!(count.0.load(Ordering::Relaxed), MOST + 1);
                wake(count.clone().into());
                panic!("in the middle");
            });
        }));
        assert!(panicked.is_err());
        assert_eq!(count.0.load(Ordering::Relaxed), MOST + 2);
    }
}
