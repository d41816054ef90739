//! How the client's thread and the tasks take turns, instead of waking one another for every message.
//!
//! # One wake-up for all that came in one read
//!
//! The client's thread reads what the server sent, and wakes a task for the first frame of it: that task then runs on
//! another core, finds one message or one confirmation, sleeps, and is woken for the next. Most of the time of a busy
//! connection went into that. So a wake-up that comes out of the frames of a read waits here until they have all been
//! handled: until the client's thread touches its stream again.
//!
//! The thread does so at once: of a read with data, the end is told as [`Poll::Pending`](std::task::Poll::Pending) with
//! a wake-up of the thread itself ([`Reading::end`]). Whatever happens to the thread, its stream is dropped at last, and
//! that lets go of the wake-ups too. What wakes from any other thread passes at once. (With the recovery of the client, which
//! is off, its thread could sleep between a read and the next use of its stream.)
//!
//! # One write for many messages
//!
//! The client's thread wakes for the first message that it is given, writes that one, sleeps, and is woken for the next.
//! So whoever gives it many at once holds a [`Cork`] meanwhile, and its next write waits for the end of them.

use std::cell::RefCell;
use std::future::poll_fn;
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

thread_local! {
    /// What this thread reads now.
    static READING: RefCell<Option<Arc<Held>>> = const { RefCell::new(None) };
}

/// Wake-ups that wait for the end of the frames.
#[derive(Debug, Default)]
struct Held(Mutex<Vec<Waker>>);

/// A stream's side: between a read and the next use of the stream, wake-ups wait.
#[derive(Debug, Default)]
pub(crate) struct Reading {
    held: Arc<Held>,
    /// Whether data was read since the last [`end`](Self::end).
    read: bool,
}

impl Reading {
    /// Data was read: what it wakes on this thread waits.
    pub(crate) fn begin(&mut self) {
        self.read = true;
        set(Some(self.held.clone()));
    }

    /// The frames that were read before have been handled: wakes whom they woke.
    pub(crate) fn pass(&mut self) {
        set(None);
        // Not under the lock: a task may run at once.
        let held = std::mem::take(&mut *self.held.0.lock());
        held.into_iter().for_each(Waker::wake);
    }

    /// There is no more to read now. The frames that were read are handled next; the reader is woken to come back
    /// behind them.
    pub(crate) fn end(&mut self, reader: &Context<'_>) {
        if std::mem::take(&mut self.read) {
            set(Some(self.held.clone()));
            reader.waker().wake_by_ref();
        }
    }
}

/// A thread that ends has nothing to read.
fn set(held: Option<Arc<Held>>) {
    let _ = READING.try_with(|reading| reading.replace(held));
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.pass();
    }
}

/// A task's side: its waker, and the same one that waits for the end of a read.
#[derive(Debug, Default)]
pub(crate) struct Patient(Option<(Waker, Waker)>);

impl Patient {
    /// The waker of this task that waits for the end of a read.
    pub(crate) fn waker(&mut self, task: &Waker) -> &Waker {
        if self.0.as_ref().is_some_and(|(known, _)| !known.will_wake(task)) {
            self.0 = None;
        }
        let (_, patient) = self.0.get_or_insert_with(|| (task.clone(), Waker::from(Arc::new(Waiting(task.clone())))));
        patient
    }
}

/// Keeps the client's thread from writing. Cloning it shares it.
///
/// Not the lock used elsewhere, which gives its processor away while it waits: with few processors, to who holds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cork(Arc<StdMutex<()>>);

impl Cork {
    /// Until the guard is dropped, which has to be soon: the thread of the connection waits.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        // It guards nothing that a panic could leave half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody holds it.
    pub(crate) fn pass(&self) {
        drop(self.hold());
    }
}

struct Waiting(Waker);

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let reading = READING.try_with(|reading| reading.borrow().clone()).ok().flatten();
        let Some(held) = reading else { return self.0.wake_by_ref() };
        let mut held = held.0.lock();
        if !held.iter().any(|waker| waker.will_wake(&self.0)) {
            held.push(self.0.clone());
        }
    }
}

/// Sleeps until the task is woken, by whatever wakes it.
pub(crate) async fn woken() {
    let mut slept = false;
    poll_fn(|_| if std::mem::replace(&mut slept, true) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// Lets others go first that can run. Not `yield_now`, which asks the system for events as well.
pub(crate) async fn behind_others() {
    poll_fn(|cx| {
        cx.waker().wake_by_ref();
        Poll::Ready(())
    })
    .await;
    woken().await;
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    impl Count {
        fn of(self: &Arc<Self>) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn what_a_read_wakes_is_woken_once_and_behind_it() {
        let (task, reader) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (plain, mut patient) = (Waker::from(task.clone()), Patient::default());
        let waker = patient.waker(&plain).clone();
        let mut reading = Reading::default();
        waker.wake_by_ref();
        assert_eq!(task.of(), 1, "nothing is read");

        reading.begin();
        // The reader looks for more, and there is none.
        reading.pass();
        reading.end(&Context::from_waker(&Waker::from(reader.clone())));
        assert_eq!(reader.of(), 1, "the reader comes back by itself");
        waker.wake_by_ref();
        waker.wake_by_ref();
        plain.wake_by_ref();
        assert_eq!(task.of(), 2, "only the patient waker waits");
        let other = waker.clone();
        std::thread::spawn(move || other.wake()).join().unwrap();
        assert_eq!(task.of(), 3, "only on the thread that reads");
        reading.pass();
        assert_eq!(task.of(), 4, "both as one");
        waker.wake_by_ref();
        assert_eq!(task.of(), 5, "nothing is read any more");

        reading.end(&Context::from_waker(&Waker::from(reader.clone())));
        assert_eq!(reader.of(), 1, "nothing came meanwhile");
    }

    #[test]
    fn a_stream_that_is_dropped_lets_go() {
        let task = Arc::new(Count::default());
        let mut patient = Patient::default();
        let mut reading = Reading::default();
        reading.begin();
        patient.waker(&Waker::from(task.clone())).wake_by_ref();
        assert_eq!(task.of(), 0);
        drop(reading);
        assert_eq!(task.of(), 1);
    }

    #[test]
    fn another_task_is_woken_where_it_polls() {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut patient = Patient::default();
        patient.waker(&Waker::from(first.clone()));
        patient.waker(&Waker::from(second.clone())).wake_by_ref();
        assert_eq!((first.of(), second.of()), (0, 1));
    }

    #[test]
    fn a_write_waits_for_who_holds_the_cork() {
        let cork = Cork::default();
        let held = cork.hold();
        let (writer, passed) = (cork.clone(), Arc::new(Count::default()));
        let told = passed.clone();
        let thread = std::thread::spawn(move || {
            writer.pass();
            told.0.fetch_add(1, Ordering::SeqCst);
        });
        assert_eq!(passed.of(), 0);
        drop(held);
        thread.join().unwrap();
        assert_eq!(passed.of(), 1);
        // Who panics while holding it keeps nobody.
        let (panics, after) = (cork.clone(), cork);
        std::thread::spawn(move || {
            let _held = panics.hold();
            panic!("while holding it");
        })
        .join()
        .unwrap_err();
        after.pass();
    }
}
