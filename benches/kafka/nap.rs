//! Sleeps that are as short as they are meant to be.
//!
//! The timer of the runtime counts whole milliseconds and rounds up, by more than 1 ms of 2.5.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// The system wakes a thread up to this much too late; the rest is waited for awake.
const SLACK: Duration = Duration::from_micros(80);
/// While nobody sleeps.
const IDLE: Duration = Duration::from_secs(1);

type Sleeper = (Instant, oneshot::Sender<()>);

/// Wakes tasks, from a thread of its own.
#[derive(Clone)]
pub(crate) struct Naps(Sender<Sleeper>);

impl Naps {
    pub(crate) fn new() -> Self {
        let (new, sleepers) = channel();
        std::thread::spawn(move || wake(&sleepers));
        Self(new)
    }

    pub(crate) async fn sleep(&self, time: Duration) {
        let (wake, woken) = oneshot::channel();
        self.0.send((Instant::now() + time, wake)).expect("the thread lives as long as this");
        woken.await.expect("everybody is woken");
    }
}

fn wake(new: &Receiver<Sleeper>) {
    let mut asleep: BTreeMap<(Instant, usize), oneshot::Sender<()>> = BTreeMap::new();
    for number in 0.. {
        let now = Instant::now();
        while let Some(first) = asleep.first_entry().filter(|first| first.key().0 <= now) {
            // Who does not wait any more needs no waking.
            let _ = first.remove().send(());
        }
        let next = asleep.first_key_value().map_or(IDLE, |((due, _), _)| due.saturating_duration_since(now));
        match new.recv_timeout(next.saturating_sub(SLACK)) {
            Ok((due, sleeper)) => drop(asleep.insert((due, number), sleeper)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
