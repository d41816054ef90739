//! Handlers that take many messages at a time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use queue_core::{Delivery, Error, request};
use tokio::time::{Instant, timeout_at};

use crate::failure::{BoxError, Failure};
use crate::handling::note;
use crate::job::Job;
use crate::run::{Run, Start, far};
use crate::task::Work;

/// How many messages a batch handler gets at a time.
///
/// No more come together than the receiver fetches ahead: for full batches its `prefetch` is the size of a batch, times the
/// [concurrency](crate::Worker::concurrency) and one more, which comes while the others are worked on.
///
/// ```
/// # use std::time::Duration;
/// use queue_worker::Batches;
/// let batches = Batches::of(500).within(Duration::from_millis(100));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Batches {
    most: usize,
    within: Duration,
}

impl Batches {
    /// At most so many, at least one. More than the receiver's `prefetch` never come together.
    #[must_use]
    pub fn of(most: usize) -> Self {
        Self { most: most.max(1), within: Duration::ZERO }
    }

    /// How long the first message waits for others. Default: not at all; those that are there go together.
    #[must_use]
    pub fn within(mut self, wait: Duration) -> Self {
        self.within = wait;
        self
    }
}

/// What a batch handler may return: one result for all, or one for each message in order.
pub trait HandledBatch: Send + 'static {
    /// One result for each of so many messages, in order.
    fn into_results(self, count: usize) -> Vec<Result<(), Failure>>;
}

impl HandledBatch for () {
    fn into_results(self, count: usize) -> Vec<Result<(), Failure>> {
        (0..count).map(|_| Ok(())).collect()
    }
}

impl<E: Into<BoxError> + Send + 'static> HandledBatch for Result<(), E> {
    fn into_results(self, count: usize) -> Vec<Result<(), Failure>> {
        match self {
            Ok(()) => ().into_results(count),
            Err(error) => all(Failure::from_service(error.into()), count),
        }
    }
}

/// Messages beyond the results are tried again: a handler that forgets some loses none.
impl<E: Into<BoxError> + Send + 'static> HandledBatch for Vec<Result<(), E>> {
    fn into_results(self, count: usize) -> Vec<Result<(), Failure>> {
        let missing = || Err(Failure::temporary("the handler returned no result for this message of the batch"));
        let results = self.into_iter().map(|result| result.map_err(|error| Failure::from_service(error.into())));
        results.chain(std::iter::repeat_with(missing)).take(count).collect()
    }
}

/// A function of a batch: an `async fn(Vec<Job>)` that returns what is [`HandledBatch`].
pub trait BatchHandler: Send + 'static {
    /// What comes of a batch.
    type Handled: HandledBatch;
    /// The work on a batch.
    type Future: Future<Output = Self::Handled> + Send + 'static;

    /// Starts the work on a batch.
    fn call(&mut self, batch: Vec<Job>) -> Self::Future;
}

impl<F, Fut> BatchHandler for F
where
    F: FnMut(Vec<Job>) -> Fut + Send + 'static,
    Fut: Future<Output: HandledBatch> + Send + 'static,
{
    type Handled = Fut::Output;
    type Future = Fut;

    fn call(&mut self, batch: Vec<Job>) -> Fut {
        self(batch)
    }
}

/// Many messages at a time to a batch handler.
pub(crate) struct Many<H> {
    pub(crate) batches: Batches,
    pub(crate) handler: H,
}

impl<H: BatchHandler> Start for Many<H> {
    async fn start(&mut self, run: &mut Run, first: Delivery) -> Result<(), Error> {
        let (job, work) = Work::take(&run.shared, &run.receiver, first);
        let (mut jobs, mut works) = (vec![job], vec![work]);
        let full = far(Instant::now(), self.batches.within);
        let mut ended = Ok(());
        while jobs.len() < self.batches.most {
            match timeout_at(full, run.receiver.next()).await {
                Ok(Some(Ok(delivery))) if request::is_over(&delivery) => run.nobody_waits(delivery),
                Ok(Some(Ok(delivery))) => {
                    let (job, work) = Work::take(&run.shared, &run.receiver, delivery);
                    jobs.push(job);
                    works.push(work);
                }
                Ok(Some(Err(error))) => {
                    ended = Err(error);
                    break;
                }
                Ok(None) | Err(_) => break,
            }
        }
        let handler = &mut self.handler;
        let processing = run.receiver.processing_batch(jobs.iter().map(Job::message));
        run.run(
            processing,
            move || {
                let batch = handler.call(jobs);
                async move { Ok::<_, Failure>(batch.await) }
            },
            move |handled, processing| {
                let results = match handled {
                    Ok(handled) => handled.into_results(works.len()),
                    Err(failure) => all(failure, works.len()),
                };
                results.iter().for_each(|result| note(processing, result));
                works.into_iter().zip(results).for_each(|(work, result)| work.answer(result));
                None
            },
        )
        .await;
        ended
    }
}

/// The same failure for all messages of a batch.
fn all(failure: Failure, count: usize) -> Vec<Result<(), Failure>> {
    let kind = failure.kind();
    let error = SharedError(Arc::new(failure.into_error()));
    (0..count).map(|_| Err(Failure::of(kind, error.clone()))).collect()
}

/// An error that many messages have.
#[derive(Clone)]
struct SharedError(Arc<crate::failure::BoxError>);

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SharedError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}
