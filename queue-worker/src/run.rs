//! A worker at work: receives, starts handlers, drains.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use queue_core::{Delivery, Error, ErrorKind, Processing, Receiver, request};
use tokio::sync::watch;
use tokio::task::coop::has_budget_remaining;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout, timeout_at};
use tower_service::Service;

use crate::control::Wish;
use crate::counts::Counters;
use crate::failure::{BoxError, Failure};
use crate::handling::{Handling, Rest};
use crate::job::Job;
use crate::lanes::Lanes;
use crate::light::Light;
use crate::reply::IntoReply;
use crate::report::Report;
use crate::task::{Place, Shared, Work};

/// How long answers have to reach the broker, once the handlers have ended.
const FLUSH: Duration = Duration::from_secs(5);
/// How long handlers that were dropped have to be gone: until they next wait for something.
const DROP: Duration = Duration::from_secs(1);

/// A moment after another; one that lies beyond all clocks is thirty years away.
pub(crate) fn far(from: Instant, after: Duration) -> Instant {
    from.checked_add(after).unwrap_or_else(|| from + Duration::from_secs(30 * 365 * 86_400))
}

/// A message that no handler has yet. Dropped, it is given back.
struct InHand<'a> {
    delivery: Option<Delivery>,
    counters: &'a Counters,
}

impl<'a> InHand<'a> {
    fn new(delivery: Delivery, shared: &'a Shared) -> Self {
        Self { delivery: Some(delivery), counters: &shared.state.counters }
    }

    fn take(mut self) -> Option<Delivery> {
        self.delivery.take()
    }
}

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            self.counters.released.add();
            delivery.release();
        }
    }
}

/// Tells when the worker waits.
async fn watched<F: Future>(future: F, light: &mut Light) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            light.waited();
        }
        polled
    })
    .await
}

/// Starts handlers.
pub(crate) trait Start {
    /// Starts a handler for this message, or for those that come with it. An error ends the worker.
    fn start(&mut self, run: &mut Run, first: Delivery) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A worker at work.
pub(crate) struct Run {
    pub(crate) receiver: Receiver,
    pub(crate) shared: Arc<Shared>,
    drain: Duration,
    until: BoxFuture<'static, ()>,
    lanes: Lanes,
    light: Light,
    wish: watch::Receiver<Wish>,
    /// Whether the last wish was to run.
    runs: bool,
}

impl Run {
    pub(crate) fn new(receiver: Receiver, shared: Arc<Shared>, drain: Duration, until: BoxFuture<'static, ()>) -> Self {
        let mut wish = shared.state.wish.subscribe();
        wish.mark_changed();
        Self { receiver, shared, drain, until, lanes: Lanes::new(), light: Light::new(), wish, runs: true }
    }

    pub(crate) async fn serve(mut self, mut start: impl Start) -> Report {
        let until = std::mem::replace(&mut self.until, std::future::pending().boxed());
        let mut wish = self.shared.state.wish.subscribe();
        let told = async move { drop(wish.wait_for(|wish| *wish == Wish::Stop).await) };
        let ended = {
            // What it holds when it is dropped is given back.
            let work = pin!(self.work(&mut start));
            tokio::select! {
                biased;
                () = until => None,
                () = told => None,
                error = work => error,
            }
        };
        let mut report = Report::default();
        report.errors.extend(ended);
        self.end(report).await
    }

    /// Works until the receiver ends.
    async fn work(&mut self, start: &mut impl Start) -> Option<Error> {
        loop {
            self.room().await;
            let next = watched(self.receiver.next(), &mut self.light).await;
            match next {
                Some(Ok(delivery)) if request::is_over(&delivery) => self.nobody_waits(delivery),
                // It came for a handler that may not start now.
                Some(Ok(delivery)) if !self.is_wanted() => {
                    drop(InHand::new(delivery, &self.shared));
                }
                Some(Ok(mut delivery)) => {
                    if self.shared.circuit.is_some() {
                        let in_hand = InHand::new(delivery, &self.shared);
                        self.shared.passed().await;
                        let Some(passed) = in_hand.take() else { continue };
                        delivery = passed;
                    }
                    if let Err(error) = start.start(self, delivery).await {
                        return Some(error);
                    }
                }
                Some(Err(error)) => return Some(error),
                None => return Some(Error::closed("receiver").with_operation("work")),
            }
        }
    }

    /// A request that came too late.
    pub(crate) fn nobody_waits(&self, delivery: Delivery) {
        tracing::debug!("nobody waits for the reply any more; the request is not worked on");
        self.shared.state.counters.expired.add();
        delivery.ack();
    }

    /// Whether handlers may start; looks closer only when something was said.
    fn is_wanted(&mut self) -> bool {
        if self.wish.has_changed().unwrap_or(false) {
            self.runs = *self.wish.borrow_and_update() == Wish::Run;
        }
        self.runs
    }

    /// Waits until another handler may start.
    async fn room(&mut self) {
        loop {
            poll_fn(|cx| self.shared.state.slots.poll_free(cx)).await;
            if self.is_wanted() {
                return self.shared.passed().await;
            }
            // Others can have it meanwhile.
            let given_back = self.receiver.give_back();
            self.shared.state.counters.released.add_all(given_back);
            // The sender is ours, so that it is never gone. After a stop nothing changes any more.
            let _ = self.wish.changed().await;
            self.wish.mark_changed();
        }
    }

    /// Runs a handler, which ends with `finish`: in a task beside the others, unless it is light. Both run inside of its span.
    pub(crate) async fn run<F, T, E>(
        &mut self,
        processing: Processing,
        call: impl FnOnce() -> F,
        finish: impl FnOnce(Result<T, Failure>, &mut Processing) -> Rest + Send + 'static,
    ) where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Into<BoxError>,
    {
        let mut task = Box::pin(Handling::call(call, finish, processing, Place::take(&self.shared)));
        if !self.light.is_tried() {
            return self.lanes.run(task);
        }
        let began = self.light.begin(std::time::Instant::now);
        if poll_fn(|cx| Poll::Ready(task.as_mut().poll(cx).is_ready())).await {
            let turn = self.light.ended(began, std::time::Instant::now());
            drop(task);
            // A queue that is never empty lets other tasks run too. Not `consume_budget`, which has another thread take over
            // the task, every 128 messages.
            if turn || !has_budget_remaining() {
                self.light.waited();
                yield_now().await;
            }
        } else {
            self.light.waits();
            self.lanes.run(task);
        }
    }

    async fn end(mut self, mut report: Report) -> Report {
        let drained = far(Instant::now(), self.drain);
        // Gives back what is buffered, so that others can have it while handlers end.
        let stopped = timeout_at(far(drained, FLUSH), self.receiver.stop()).await;
        let idle = || poll_fn(|cx| self.shared.state.slots.poll_idle(cx));
        if timeout_at(drained, idle()).await.is_err() {
            tracing::warn!(
                handlers = self.shared.state.slots.running(),
                "handlers are dropped, they did not end in time"
            );
            self.lanes.abort();
            // One that waits for nothing cannot be dropped.
            let _ = timeout(DROP, idle()).await;
        }
        report.closed(self.receiver.close(FLUSH).await);
        if stopped.is_err() {
            let why = "the receiver did not stop in time";
            report.errors.push(Error::new(ErrorKind::Timeout, why).with_operation("drain"));
        }
        report.add(&self.shared.state.counters.read());
        report
    }
}

/// One message at a time to a service.
pub(crate) struct One<S>(pub(crate) S);

impl<S> Start for One<S>
where
    S: Service<Job, Response: IntoReply + Send + 'static, Error: Into<BoxError> + 'static, Future: Send + 'static>
        + Send,
{
    async fn start(&mut self, run: &mut Run, delivery: Delivery) -> Result<(), Error> {
        let in_hand = InHand::new(delivery, &run.shared);
        let ready = poll_fn(|cx| self.0.poll_ready(cx).map_err(Into::into));
        let over = match AssertUnwindSafe(ready).catch_unwind().await {
            Ok(ready) => ready.err(),
            Err(panic) => Some(run.shared.panicked(panic).into_error()),
        };
        if let Some(error) = over {
            return Err(Error::new(ErrorKind::Internal, "the handler takes no more messages")
                .with_operation("work")
                .with_source(error));
        }
        // Taken apart only now: what is kept over an `await` is moved once more.
        let Some(delivery) = in_hand.take() else { return Ok(()) };
        let (job, work) = Work::take(&run.shared, &run.receiver, delivery);
        let processing = run.receiver.processing(&job);
        let finish =
            move |result: Result<S::Response, Failure>, processing: &mut Processing| work.finish(result, processing);
        run.run(processing, || self.0.call(job), finish).await;
        Ok(())
    }
}
