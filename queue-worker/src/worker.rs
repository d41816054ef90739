//! The worker, and how it is set up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use queue_core::Receiver;
use tokio::sync::Notify;
use tower_layer::{Identity, Layer, Stack};
use tower_service::Service;

use crate::batch::{BatchHandler, Batches, Many};
use crate::breaker::{Breaker, Circuit};
use crate::control::{Control, State};
use crate::failure::BoxError;
use crate::handler::IntoHandler;
use crate::job::Job;
use crate::limit::{Adaptive, Limit};
use crate::reply::IntoReply;
use crate::report::Report;
use crate::retry::{ReceiversOwn, RetryPolicy};
use crate::run::{One, Run};
use crate::task::Shared;

/// Handlers at a time unless told otherwise.
const CONCURRENCY: usize = 16;
/// How long running handlers have at the end unless told otherwise: within the 30 s that Kubernetes gives a container.
const DRAIN: Duration = Duration::from_secs(20);

/// Hands the messages of a receiver to a handler, and answers them by what it returns.
///
/// | the handler | its message |
/// | --- | --- |
/// | returns `Ok`, `()` or a reply | is done |
/// | returns an error, panics, or runs out of time | is tried again after a backoff; after `max_deliveries` attempts it is a dead letter |
/// | returns [`Failure::permanent`](crate::Failure::permanent) | is a dead letter at once |
/// | returns [`Failure::unavailable`](crate::Failure::unavailable) | is tried again in a second, or when the [`Breaker`](crate::Breaker) lets it, not counted |
/// | does not end within the drain | is given back, not counted where the broker can tell |
///
/// Whoever [asks](queue_core::Client::request) for a reply gets what the handler returns, if it is [`IntoReply`], before the
/// message is done; or its error, when the message is a dead letter. A temporary one is tried again first. Requests of which
/// nobody waits for the reply any more are not worked on, as far as they say so.
///
/// Leases are renewed while a handler runs, up to the receiver's `max_handler_time`. With the receiver's
/// `ordering(PerKey)` the messages of a key are worked on one after the other, those of many keys at a time.
///
/// ```
/// use queue_core::{Client, memory};
/// use queue_worker::{Job, Worker};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
/// client.sender("orders").await?.send("hello").await?;
///
/// let worker = Worker::new(client.receiver("orders").await?).concurrency(64);
/// let control = worker.control();
/// let report = worker
///     .serve(move |job: Job| {
///         let control = control.clone();
///         async move {
///             println!("{:?}", job.text());
///             control.stop();
///         }
///     })
///     .await;
/// assert_eq!(report.counts.processed, 1);
/// # Ok(())
/// # }
/// ```
#[must_use = "a worker does nothing until it serves"]
pub struct Worker<L = Identity> {
    receiver: Receiver,
    concurrency: usize,
    adaptive: Option<Adaptive>,
    deadline: Option<Duration>,
    drain: Duration,
    retry: Box<dyn RetryPolicy>,
    breaker: Option<Breaker>,
    until: BoxFuture<'static, ()>,
    state: Arc<State>,
    layer: L,
}

impl Worker {
    /// A worker for these messages: 16 handlers at a time, no deadline, 20 s to drain, the receiver's own backoff.
    pub fn new(receiver: Receiver) -> Self {
        let state = State::new(receiver.control());
        Self {
            receiver,
            concurrency: CONCURRENCY,
            adaptive: None,
            deadline: None,
            drain: DRAIN,
            retry: Box::new(ReceiversOwn),
            breaker: None,
            until: std::future::pending().boxed(),
            state,
            layer: Identity::new(),
        }
    }
}

impl<L> Worker<L> {
    /// Most handlers at a time, at least one; bounded by the receiver's `prefetch` too. Default: 16.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers.max(1);
        self.adaptive = None;
        self
    }

    /// As many handlers at a time as they can take. Default: a fixed [`concurrency`](Self::concurrency).
    pub fn adaptive(mut self, adaptive: Adaptive) -> Self {
        self.adaptive = Some(adaptive);
        self
    }

    /// The most time that a handler has for a message, which is a temporary failure then; its future is dropped.
    /// Default: none.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// How long running handlers have once the worker is to end; then they are dropped and their messages given back.
    /// Answers have up to 5 s more to reach the broker. Default: 20 s.
    pub fn drain(mut self, drain: Duration) -> Self {
        self.drain = drain;
        self
    }

    /// When failed messages are tried again. Default: the receiver's `backoff_min` to `backoff_max`.
    pub fn retry(mut self, policy: impl RetryPolicy) -> Self {
        self.retry = Box::new(policy);
        self
    }

    /// Pauses while what handlers need is away. Default: none.
    pub fn breaker(mut self, breaker: Breaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// Ends the worker when this resolves: [`signal()`](crate::signal), the `cancelled()` of a token. Default: never.
    pub fn until(mut self, end: impl Future<Output = ()> + Send + 'static) -> Self {
        self.until = end.boxed();
        self
    }

    /// Wraps the handler in a layer of tower; the last one given is the outermost. An error of a layer is a temporary
    /// failure.
    pub fn layer<T>(self, layer: T) -> Worker<Stack<L, T>> {
        Worker {
            receiver: self.receiver,
            concurrency: self.concurrency,
            adaptive: self.adaptive,
            deadline: self.deadline,
            drain: self.drain,
            retry: self.retry,
            breaker: self.breaker,
            until: self.until,
            state: self.state,
            layer: Stack::new(self.layer, layer),
        }
    }

    /// Controls the worker from elsewhere.
    #[must_use]
    pub fn control(&self) -> Control {
        Control(self.state.clone())
    }

    /// Works until it is to end, or the receiver ends with an error; then drains.
    ///
    /// Each handler has a task to itself while it runs, so that many use all cores; the task, with its id, takes another behind it,
    /// until the worker has ended. Only as long as they wait for nothing and end within 10 µs they run in the worker's. A panic ends
    /// nothing but its handler.
    ///
    /// # Cancel safety
    /// Dropped, no more handlers start; those that run go on and answer, and the receiver gives back the rest.
    pub async fn serve<H, Kind>(self, handler: H) -> Report
    where
        H: IntoHandler<Kind>,
        L: Layer<H::Service>,
        L::Service: Service<Job, Response: IntoReply + Send + 'static, Error: Into<BoxError> + 'static, Future: Send + 'static>
            + Send
            + 'static,
    {
        let service = self.layer.layer(handler.into_handler());
        let run = self.into_run();
        run.serve(One(service)).await
    }

    fn into_run(self) -> Run {
        let limit = self.adaptive.map_or(self.concurrency, |adaptive| adaptive.min);
        self.state.slots.set_limit(limit);
        let shared = Shared {
            state: self.state,
            retry: self.retry,
            deadline: self.deadline,
            circuit: self.breaker.map(|breaker| Mutex::new(Circuit::new(breaker))),
            circuit_moved: Notify::new(),
            adaptive: self.adaptive.map(|adaptive| Mutex::new(Limit::new(adaptive))),
        };
        Run::new(self.receiver, Arc::new(shared), self.drain, self.until)
    }
}

impl Worker {
    /// As [`serve`](Self::serve), with a handler that takes many messages at a time; `concurrency` counts batches.
    pub async fn serve_batches<H: BatchHandler>(self, batches: Batches, handler: H) -> Report {
        self.into_run().serve(Many { batches, handler }).await
    }
}

impl<L> fmt::Debug for Worker<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("receiver", &self.receiver)
            .field("concurrency", &self.concurrency)
            .field("adaptive", &self.adaptive)
            .field("deadline", &self.deadline)
            .field("drain", &self.drain)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}
