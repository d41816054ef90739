//! How the way to the broker is doing: noticed by every request, told once per change.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, EventKind, Events, HealthState, Result};
use tokio::task::AbortHandle;

use crate::error::{self, Words};

/// Consecutive failures after which the broker counts as unreachable: one may be a connection that had gone stale.
const FAILURES: u32 = 2;

/// The pause between two looks at a broker that is away: from, to.
const PROBE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(3));

/// What asks the endpoint for any answer at all.
type Ping = dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync;

/// The state of the way to one endpoint.
pub(crate) struct Link {
    host: String,
    events: Events,
    ask: Box<Ping>,
    failures: AtomicU32,
    down: AtomicBool,
    probe: Mutex<Option<AbortHandle>>,
}

impl Link {
    /// Watches the way to `host`; `ask` looks whether it is back.
    pub(crate) fn new(
        host: String,
        events: Events,
        ask: impl Fn() -> BoxFuture<'static, Result<()>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            host,
            events,
            ask: Box::new(ask),
            failures: AtomicU32::new(0),
            down: AtomicBool::new(false),
            probe: Mutex::new(None),
        })
    }

    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// Whether the broker counts as unreachable.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Acquire)
    }

    /// The error of what is not even tried while the broker is unreachable: a request that waits in the buffers of a
    /// frozen broker would be done after all when it goes on, and nobody would know.
    pub(crate) fn away(&self) -> Error {
        Error::new(ErrorKind::Connection, "the broker does not answer").with_context("host", &self.host)
    }

    /// Notes how a request ended and maps its error.
    pub(crate) fn note<T, E>(
        self: &Arc<Self>,
        operation: &'static str,
        words: Words,
        result: std::result::Result<T, SdkError<E>>,
    ) -> Result<T>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.noted(result.map_err(|error| error::from_sdk(operation, &error, words)))
    }

    fn noted<T>(self: &Arc<Self>, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if error::is_transport(&error) => {
                let error = error.with_context("host", &self.host);
                self.failed(&error);
                Err(error)
            }
            // A refusal is an answer; missing credentials say nothing about the way.
            other => {
                self.answered();
                other
            }
        }
    }

    fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        if self.down.load(Ordering::Relaxed) && self.down.swap(false, Ordering::AcqRel) {
            self.events.set_problem(&self.host, None);
            self.events.emit(EventKind::Connected, &self.host, None);
        }
    }

    fn failed(self: &Arc<Self>, error: &Error) {
        if self.failures.fetch_add(1, Ordering::AcqRel) + 1 < FAILURES || self.down.swap(true, Ordering::AcqRel) {
            return;
        }
        self.events.set_problem(&self.host, Some((HealthState::Down, format!("{} does not answer", self.host))));
        self.events.emit(EventKind::Disconnected, &self.host, Some(error.clone()));
        let task = tokio::spawn(probe(Arc::downgrade(self)));
        if let Some(old) = self.probe.lock().replace(task.abort_handle()) {
            old.abort();
        }
    }

    /// Asks the broker for any answer; a refusal of the right to do what is asked is one.
    pub(crate) async fn ping(self: &Arc<Self>) -> Result<()> {
        let refused = |code: &str| code.starts_with("AccessDenied") || code.starts_with("AuthorizationError");
        match self.noted((self.ask)().await) {
            Err(error) if error.context("code").is_some_and(refused) => Ok(()),
            other => other,
        }
    }

    /// Stops looking whether the broker is back.
    pub(crate) fn close(&self) {
        if let Some(task) = self.probe.lock().take() {
            task.abort();
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close();
    }
}

/// Looks until the broker answers, so that health recovers without anybody sending or receiving.
async fn probe(link: Weak<Link>) {
    let mut pause = PROBE.0;
    loop {
        tokio::time::sleep(pause).await;
        let Some(link) = link.upgrade() else { return };
        if !link.is_down() {
            return;
        }
        // The outcome is noted inside.
        let _ = link.ping().await;
        pause = (pause * 2).min(PROBE.1);
    }
}
