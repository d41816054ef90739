//! What happens behind the handles: events and health.

use std::collections::BTreeMap;
use std::sync::Arc;
#[cfg(feature = "otel")]
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::error::Error;

/// Events that wait for a slow listener before the oldest are dropped.
const EVENT_BUFFER: usize = 256;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EventKind {
    /// A connection is up.
    Connected,
    /// A connection is lost; it comes back by itself.
    Disconnected,
    /// The broker stopped taking messages (memory or disk alarm).
    Blocked,
    /// The broker takes messages again.
    Unblocked,
    /// Messages were taken away from a receiver (rebalance).
    Revoked,
    /// An answer was refused for good; the message comes again.
    AnswerFailed,
    /// Messages were removed by retention before they were read.
    Expired,
    /// Positions are missing in what was read.
    Gap,
    /// A dead-letter copy failed; it is tried again.
    DeadLetterFailed,
    /// A delivery was dropped without an answer.
    Dropped,
}

/// Something that happened behind the handles.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// What it happened to: a host, an address.
    pub subject: Arc<str>,
    /// Why.
    pub error: Option<Error>,
}

/// How well something works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum HealthState {
    /// All is well.
    #[default]
    Up,
    /// It works, with something that needs a look.
    Degraded,
    /// It does not work now.
    Down,
}

/// How a broker or client is doing, told without a network call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// The worst of all problems.
    pub state: HealthState,
    /// Each present problem in a line.
    pub problems: Vec<String>,
    /// Whether the client was closed: nothing comes back by itself.
    pub closed: bool,
}

impl Health {
    /// Health without problems.
    #[must_use]
    pub fn up() -> Self {
        Self::default()
    }

    /// Adds a problem.
    #[must_use]
    pub fn with_problem(mut self, state: HealthState, problem: impl Into<String>) -> Self {
        self.state = self.state.max(state);
        self.problems.push(problem.into());
        self
    }

    /// Whether requests that need the broker should come here: it is up, or degraded. For a readiness probe.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state != HealthState::Down
    }

    /// Whether this process can get well by itself, as it does from anything but a close. For a liveness probe, which must
    /// not restart a service because its broker is away.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.closed
    }

    /// Whether all is well.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state == HealthState::Up
    }
}

#[derive(Debug)]
struct Hub {
    sender: broadcast::Sender<Event>,
    problems: Mutex<BTreeMap<String, (HealthState, String)>>,
    /// Connections that are lost; which comes back, and to which host, does not matter.
    #[cfg(feature = "otel")]
    lost: AtomicU64,
}

/// Where adapters and handles report events and problems. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Events(Arc<Hub>);

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Events {
    /// Makes a sink of its own.
    #[must_use]
    pub fn new() -> Self {
        let (sender, _) = broadcast::channel(EVENT_BUFFER);
        Self(Arc::new(Hub {
            sender,
            problems: Mutex::default(),
            #[cfg(feature = "otel")]
            lost: AtomicU64::default(),
        }))
    }

    /// Reports an event: to the listeners and to the log.
    pub fn emit(&self, kind: EventKind, subject: &str, error: Option<Error>) {
        match (kind, &error) {
            (EventKind::Connected | EventKind::Unblocked, _) => tracing::info!(subject, "{kind:?}"),
            (_, Some(error)) => tracing::warn!(subject, %error, "{kind:?}"),
            (_, None) => tracing::warn!(subject, "{kind:?}"),
        }
        #[cfg(feature = "otel")]
        self.count(kind, subject);
        // No listener is no error.
        let _ = self.0.sender.send(Event { kind, subject: subject.into(), error });
    }

    /// Counts connections that come back.
    #[cfg(feature = "otel")]
    fn count(&self, kind: EventKind, subject: &str) {
        let lost = &self.0.lost;
        match kind {
            EventKind::Disconnected => {
                lost.fetch_add(1, Ordering::Relaxed);
            }
            EventKind::Connected => {
                let again = lost.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |lost| lost.checked_sub(1)).is_ok();
                crate::observe::metrics::connected(subject, u64::from(again));
            }
            _ => {}
        }
    }

    /// Sets or, with `None`, clears the problem under `key`.
    pub fn set_problem(&self, key: &str, problem: Option<(HealthState, String)>) {
        let mut problems = self.0.problems.lock();
        match problem {
            Some(problem) => drop(problems.insert(key.to_owned(), problem)),
            None => drop(problems.remove(key)),
        }
    }

    /// The present problems as health.
    #[must_use]
    pub fn health(&self) -> Health {
        self.0
            .problems
            .lock()
            .values()
            .fold(Health::up(), |health, (state, problem)| health.with_problem(*state, problem.clone()))
    }

    /// Listens from now on.
    #[must_use]
    pub fn listen(&self) -> EventStream {
        EventStream(self.0.sender.subscribe())
    }
}

/// Events from the moment it was made. At most 256 wait; of a slower listener's the oldest are dropped.
#[derive(Debug)]
pub struct EventStream(broadcast::Receiver<Event>);

impl EventStream {
    /// Waits for the next event; `None` when the client is gone. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}
