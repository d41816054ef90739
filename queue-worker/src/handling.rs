//! A handler at work, from its first poll to its message's answer.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use pin_project_lite::pin_project;
use queue_core::Processing;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::failure::{BoxError, Failure};
use crate::run::far;
use crate::task::Place;

/// What is left to do before a message is answered: somebody has to be replied to.
pub(crate) type Rest = Option<BoxFuture<'static, ()>>;

pin_project! {
    /// The future of a handler, and what answers its message; both run inside of its span.
    ///
    /// Written by hand: it is moved for each message, and an `async` block would have room for most of it twice. Dropped in the
    /// order of the fields: a message is answered, or given back, before its place is.
    pub(crate) struct Handling<F, Finish> {
        // `None` once it has ended, or where none was made.
        #[pin]
        future: Option<F>,
        // A function may panic before it has made a future.
        panicked: Option<Box<dyn Any + Send>>,
        // `None` once it is called.
        finish: Option<Finish>,
        rest: Rest,
        processing: Processing,
        // When the handler began, if somebody wants to know.
        began: Option<Instant>,
        // When it is too late, from when on it waits for something.
        due: Option<Instant>,
        late: Option<Pin<Box<Sleep>>>,
        place: Place,
    }
}

impl<F, Finish> Handling<F, Finish> {
    /// Calls the handler, inside of its span.
    pub(crate) fn call(call: impl FnOnce() -> F, finish: Finish, processing: Processing, place: Place) -> Self {
        let called = {
            let _entered = processing.enter();
            catch_unwind(AssertUnwindSafe(call))
        };
        let (future, panicked) = match called {
            Ok(future) => (Some(future), None),
            Err(panic) => (None, Some(panic)),
        };
        let (finish, rest, began, due, late) = (Some(finish), None, None, None, None);
        Self { future, panicked, finish, rest, processing, began, due, late, place }
    }
}

impl<F, Finish, T, E> Handling<F, Finish>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
    Finish: FnOnce(Result<T, Failure>, &mut Processing) -> Rest,
{
    /// Runs the handler, and answers by its result.
    fn poll_handler(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        if this.finish.is_none() {
            return Poll::Ready(());
        }
        if this.began.is_none() && this.due.is_none() {
            *this.began = this.place.began();
            *this.due = this.place.deadline().map(|deadline| far(Instant::now(), deadline));
        }
        let polled = match (this.future.as_mut().as_pin_mut(), this.panicked.take()) {
            (Some(future), _) => {
                let _entered = this.processing.enter();
                let failed = |error: E| Failure::from_service(error.into());
                catch_unwind(AssertUnwindSafe(|| future.poll(cx).map(|result| result.map_err(failed))))
            }
            (None, Some(panic)) => Err(panic),
            (None, None) => Ok(Poll::Pending),
        };
        let mut result = match (polled, *this.due) {
            (Ok(Poll::Ready(result)), _) => result,
            (Ok(Poll::Pending), None) => return Poll::Pending,
            (Ok(Poll::Pending), Some(due)) => {
                let late = this.late.get_or_insert_with(|| Box::pin(sleep_until(due)));
                // Also of a handler that is never out of work.
                ready!(pin!(unconstrained(late.as_mut())).poll(cx));
                Err(this.place.late())
            }
            (Err(panic), _) => Err(this.place.panicked(panic)),
        };
        *this.late = None;
        // What is left of the handler is gone before its message is answered.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| this.future.set(None))) {
            result = Err(this.place.panicked(panic));
        }
        this.place.ended(*this.began, &result);
        let Some(finish) = this.finish.take() else { return Poll::Ready(()) };
        // A policy may panic, or what the handler returned; the message counts as dropped then.
        match catch_unwind(AssertUnwindSafe(|| answer(this.processing, finish, result))) {
            Ok(rest) => *this.rest = rest,
            Err(panic) => panicked(this.place, this.processing, panic),
        }
        Poll::Ready(())
    }
}

impl<F, Finish, T, E> Future for Handling<F, Finish>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
    Finish: FnOnce(Result<T, Failure>, &mut Processing) -> Rest,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        ready!(self.as_mut().poll_handler(cx));
        let this = self.project();
        if let Some(rest) = this.rest {
            let polled = {
                let _entered = this.processing.enter();
                catch_unwind(AssertUnwindSafe(|| rest.as_mut().poll(cx)))
            };
            match polled {
                Ok(polled) => ready!(polled),
                Err(panic) => panicked(this.place, this.processing, panic),
            }
        }
        std::mem::take(this.processing).end();
        Poll::Ready(())
    }
}

/// What was to answer the message has panicked; its work counts as dropped.
fn panicked(place: &Place, processing: &mut Processing, panic: Box<dyn Any + Send>) {
    drop(place.panicked(panic));
    drop(std::mem::take(processing));
}

/// Answers for what a handler ended with, inside of its span.
fn answer<T>(
    processing: &mut Processing,
    finish: impl FnOnce(Result<T, Failure>, &mut Processing) -> Rest,
    result: Result<T, Failure>,
) -> Rest {
    if !processing.is_observed() {
        return finish(result, processing);
    }
    let span = processing.span();
    span.in_scope(|| finish(result, processing))
}

/// Tells what observes the work that it failed.
pub(crate) fn note<T>(processing: &mut Processing, result: &Result<T, Failure>) {
    if processing.is_observed()
        && let Err(failure) = result
    {
        processing.failed(failure.kind().name(), failure);
    }
}
