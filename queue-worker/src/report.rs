//! What a worker says at its end.

use std::process::{ExitCode, Termination};

use queue_core::{CloseReport, Error};

use crate::counts::Counts;

/// What a worker did in all, and how it ended. Returned from `main`, it is the program's exit code.
///
/// ```no_run
/// use queue_core::{Client, memory};
/// use queue_worker::{Report, Worker, signal};
/// # async fn work(_: queue_worker::Job) {}
///
/// #[tokio::main]
/// async fn main() -> queue_core::Result<Report> {
///     let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
///     let orders = client.receiver("orders").await?;
///     Ok(Worker::new(orders).until(signal()).serve(work).await)
/// }
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Report {
    /// What was done.
    pub counts: Counts,
    /// Messages that were still not answered when the receiver was closed; they come again.
    pub unanswered: usize,
    /// What ended the worker before it was asked to end, and what could not be done at the end.
    pub errors: Vec<Error>,
}

impl Report {
    /// Whether it ended when it was asked to, with every message answered and every answer with the broker.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.unanswered == 0 && self.errors.is_empty()
    }

    pub(crate) fn add(&mut self, counts: &Counts) {
        self.counts.processed += counts.processed;
        self.counts.failed += counts.failed;
        self.counts.dead_lettered += counts.dead_lettered;
        self.counts.released += counts.released;
        self.counts.postponed += counts.postponed;
        self.counts.lost += counts.lost;
        self.counts.expired += counts.expired;
        self.counts.panicked += counts.panicked;
    }

    /// Adds what another worker of the program says.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.add(&other.counts);
        self.unanswered += other.unanswered;
        self.errors.extend(other.errors);
        self
    }

    pub(crate) fn closed(&mut self, closed: CloseReport) {
        self.counts.released += closed.released as u64;
        self.unanswered += closed.unanswered;
        self.errors.extend(closed.errors);
    }
}

impl Termination for Report {
    /// Success if it [is clean](Self::is_clean); else the report goes to the log, and, as an error from `main` does, to stderr.
    fn report(self) -> ExitCode {
        if self.is_clean() {
            return ExitCode::SUCCESS;
        }
        for error in &self.errors {
            tracing::error!(%error, "the worker did not end well");
            eprintln!("Error: {error}");
        }
        if self.unanswered > 0 {
            eprintln!("Error: {} messages have no answer, and come again", self.unanswered);
        }
        tracing::error!(unanswered = self.unanswered, counts = ?self.counts, "the worker did not end well");
        ExitCode::FAILURE
    }
}
