//! What this crate shares between threads, in thousands of orders in which they can take turns. No broker is needed.
//!
//! The files under test are part of this program, and made of locks and counters that let another thread go first at each
//! use. A thread that waits waits for ever here: one that is not woken is a deadlock, and shuttle tells it.

#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../src/flights.rs"]
mod flights;
#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../src/inbox.rs"]
mod inbox;
#[allow(dead_code, unused_imports, unreachable_pub)]
#[path = "../src/offsets.rs"]
mod offsets;
#[path = "../src/signal.rs"]
mod signal;

/// Of one topic only.
mod lanes {
    pub(crate) fn partition_of(lane: i32) -> i32 {
        lane
    }
}

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use flights::{Flights, Share};
use futures::FutureExt;
use inbox::{Inbox, Limits, arrived};
use libtest_mimic::{Arguments, Trial};
use queue_core::{BatchVerdict, Completion, Error, ErrorKind, Message, Outcome, Receipt};
use shuttle::future::block_on;
use shuttle::thread;
use signal::Signal;
use sync::{AtomicUsize, Ordering};

/// Locks and counters with the face of those of [`queue_kafka`], of which shuttle knows.
mod sync {
    use std::ops::{Deref, DerefMut};
    use std::time::Duration;

    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    pub(crate) struct Guard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> Guard<'_, T> {
            Guard(Some(self.0.lock().unwrap()))
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().unwrap()
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().unwrap()
        }
    }

    /// tokio's, with a counter that nobody needs, so that others may go first.
    #[derive(Debug, Default)]
    pub(crate) struct Notify(tokio::sync::Notify, AtomicUsize);

    impl Notify {
        pub(crate) fn notified(&self) -> tokio::sync::futures::Notified<'_> {
            self.1.load(Ordering::SeqCst);
            self.0.notified()
        }

        pub(crate) fn notify_waiters(&self) {
            self.1.load(Ordering::SeqCst);
            self.0.notify_waiters();
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        /// Without the time: who is woken by that alone was forgotten.
        pub(crate) fn wait_for<T>(&self, guard: &mut Guard<'_, T>, _: Duration) {
            let woken = guard.0.take().map(|held| self.0.wait(held).unwrap());
            guard.0 = woken;
        }
    }
}

/// Orders by chance, and as many in which few threads are held up at the worst place.
const ORDERS: usize = 3000;
/// How many are held up.
const HOLD_UPS: usize = 3;

fn main() {
    let tests: [(&str, fn()); 6] = [
        ("a_signal_that_is_raised_is_never_missed", a_signal_is_never_missed),
        ("each_message_of_a_batch_has_one_verdict_whoever_is_first", each_message_has_one_verdict),
        ("a_message_sent_alone_has_one_verdict_whoever_is_first", alone),
        ("messages_sent_alone_fill_groups_while_others_end", groups),
        ("a_close_ends_with_the_last_verdict", a_close_ends_with_the_last_verdict),
        ("a_thread_without_room_is_woken_by_answers", a_thread_without_room_is_woken),
    ];
    let trial = |(name, test): (&str, fn())| {
        Trial::test(name, move || {
            shuttle::check_random(test, ORDERS);
            shuttle::check_pct(test, ORDERS, HOLD_UPS);
            Ok(())
        })
    };
    libtest_mimic::run(&Arguments::from_args(), tests.map(trial).into()).exit();
}

fn a_signal_is_never_missed() {
    const RAISERS: usize = 2;
    let shared = Arc::new((Signal::default(), AtomicUsize::new(0)));
    for _ in 0..RAISERS {
        let shared = shared.clone();
        thread::spawn(move || {
            shared.1.fetch_add(1, Ordering::AcqRel);
            shared.0.raise();
        });
    }
    while shared.1.load(Ordering::Acquire) < RAISERS {
        shared.0.wait(Duration::MAX);
    }
}

fn messages(count: usize) -> Vec<Message> {
    (0..count).map(|i| Message::new(i.to_string())).collect()
}

fn refused() -> Error {
    Error::new(ErrorKind::TooLarge, "large")
}

/// How many messages were let go without a verdict.
fn unknown(verdict: BatchVerdict) -> usize {
    match block_on(verdict) {
        Ok(_) => 0,
        Err(error) => error.failures().iter().filter(|(_, error)| error.outcome() == Outcome::Unknown).count(),
    }
}

fn each_message_has_one_verdict() {
    let (flights, share) = (Arc::new(Flights::default()), Arc::new(Share::default()));
    let (done, verdict) = Completion::new(4);
    let departure = flights.depart(4, done, &share);
    let words = [0, 1, 2].map(|index| departure.word(index));
    // librdkafka gives the verdicts of a topic's partitions from its own threads, before the batch is away too.
    let lands = |word: usize, verdict: Result<Receipt, Error>| {
        let flights = flights.clone();
        thread::spawn(move || match verdict {
            Ok(receipt) => flights.accepted(&mut vec![(word, receipt)]),
            Err(_) => flights.landed(word, verdict, || None),
        })
    };
    let landing = [lands(words[2], Ok(Receipt::at(0, 2))), lands(words[0], Err(refused()))];
    let closing = {
        let (flights, share) = (flights.clone(), share.clone());
        // The second time there is nothing left to let go.
        thread::spawn(move || flights.abandon(&share) + flights.abandon(&share))
    };
    flights.departed(&departure, messages(4), vec![(3, refused())]);
    flights.landed(words[1], Ok(Receipt::at(0, 1)), || None);
    landing.into_iter().for_each(|thread| thread.join().unwrap());
    let left = closing.join().unwrap();
    // None hangs, and the report of a close counts exactly those of which nobody knows.
    assert_eq!(unknown(verdict), left);
    share.close();
    block_on(share.empty());
    // The place is free again.
    assert_eq!(flights.depart(1, Completion::new(1).0, &share).word(0), words[0]);
}

fn alone() {
    let (flights, share) = (Arc::new(Flights::default()), Arc::new(Share::default()));
    let (done, verdict) = Completion::new(3);
    let words = done.split().into_iter().map(|done| flights.depart_alone(None, done, &share));
    let (words, landing) = (words.collect::<Vec<_>>(), flights.clone());
    let landing = thread::spawn(move || {
        landing.accepted(&mut vec![(words[0], Receipt::accepted())]);
        landing.accepted(&mut vec![(words[2], Receipt::accepted()), (words[1], Receipt::accepted())]);
    });
    // Somebody else's message, which is none of this producer's.
    let (done, other) = Completion::new(1);
    let theirs = Arc::new(Share::default());
    let word = flights.depart_alone(None, done, &theirs);
    let left = flights.abandon(&share);
    landing.join().unwrap();
    assert_eq!(unknown(verdict), left);
    flights.landed(word, Ok(Receipt::accepted()), || None);
    assert_eq!(unknown(other), 0);
    share.close();
    block_on(share.empty());
}

/// Senders share groups, meet a close, and go on with another native producer while verdicts land.
fn groups() {
    let (old, new, share) = (Arc::new(Flights::default()), Arc::new(Flights::default()), Arc::new(Share::default()));
    let calls = [Completion::new(4), Completion::new(4)];
    let (mut before, mut after) = (Vec::new(), Vec::new());
    let verdicts = calls.map(|(done, verdict)| {
        let mut own = done.split();
        before.push(own.split_off(2));
        after.push(own);
        verdict
    });
    let sends = |all: Vec<Vec<Completion>>| {
        let (all, share) = (all.into_iter().zip([old.clone(), new.clone()]).collect::<Vec<_>>(), share.clone());
        thread::spawn(move || {
            for (singles, flights) in all {
                let word = |done| (flights.depart_alone(None, done, &share), Receipt::accepted());
                let mut sent: Vec<_> = singles.into_iter().map(word).collect();
                thread::spawn(move || flights.accepted(&mut sent));
            }
        })
    };
    let senders = [sends(before), sends(after)];
    share.close();
    for sender in senders {
        sender.join().unwrap();
    }
    for verdict in verdicts {
        assert_eq!(unknown(verdict), 0);
    }
    block_on(share.empty());
    for flights in [old, new] {
        assert_eq!(flights.abandon(&share), 0);
    }
}

fn a_close_ends_with_the_last_verdict() {
    let (flights, share) = (Arc::new(Flights::default()), Arc::new(Share::default()));
    let (done, batch) = Completion::new(2);
    let departure = flights.depart(2, done, &share);
    flights.departed(&departure, messages(2), vec![]);
    let (done, single) = Completion::new(2);
    let alone = done.split().into_iter().map(|done| flights.depart_alone(None, done, &share));
    for word in alone.chain([departure.word(0), departure.word(1)]).collect::<Vec<_>>() {
        let flights = flights.clone();
        thread::spawn(move || flights.landed(word, Ok(Receipt::accepted()), || None));
    }
    share.close();
    block_on(share.empty());
    assert!(batch.now_or_never().is_some() && single.now_or_never().is_some(), "the close ended before a verdict");
}

fn a_thread_without_room_is_woken() {
    const COUNT: i64 = 8;
    let limits = Limits { prefetch: 4, prefetch_bytes: 1000, max_ahead: 100, commits: false, guard: false };
    let inbox = Inbox::new("orders", limits);
    inbox.assigned([(0, None)].into_iter());
    let fetching = {
        let inbox = inbox.clone();
        thread::spawn(move || {
            let mut next = 0;
            loop {
                let plan = inbox.plan();
                if plan.closing {
                    break next;
                }
                let end = COUNT.min(next + i64::try_from(plan.room.0).unwrap());
                inbox.push((next..end).map(|offset| arrived(0, offset, Ok(Message::new("x")))).collect());
                // Everything is fetched, or there is no room.
                if next == end {
                    inbox.signal.wait(Duration::MAX);
                }
                next = end;
            }
        })
    };
    let mut answered = 0;
    while answered < COUNT {
        let mut received = Vec::new();
        let taken = block_on(poll_fn(|cx| match inbox.take(2, &mut received, cx.waker()) {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        }));
        taken.unwrap();
        for received in received {
            assert!(inbox.answer(std::iter::once(received.token), true).is_empty());
            answered += 1;
        }
    }
    inbox.close(Instant::now());
    assert_eq!(fetching.join().unwrap(), COUNT);
}
