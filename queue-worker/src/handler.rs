//! Functions as services.

use std::fmt;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::{Either, Map};
use tower_service::Service;

use crate::failure::{BoxError, Failure};
use crate::job::Job;
use crate::payload::FromJob;
use crate::reply::IntoReply;

/// What a handler may return: nothing, a reply, or a result of either whose error says what becomes of the message.
pub trait Handled {
    /// What it replies with.
    type Reply: IntoReply + Send + 'static;

    /// As the result that the worker answers by.
    ///
    /// # Errors
    /// Why the handler failed.
    fn into_result(self) -> Result<Self::Reply, Failure>;
}

impl<T: IntoReply + Send + 'static> Handled for T {
    type Reply = T;

    fn into_result(self) -> Result<T, Failure> {
        Ok(self)
    }
}

/// Any error that can be boxed: one of your own, [`Failure`], `anyhow::Error`, a boxed error, a text.
impl<T: IntoReply + Send + 'static, E: Into<BoxError>> Handled for Result<T, E> {
    type Reply = T;

    fn into_result(self) -> Result<T, Failure> {
        self.map_err(|error| Failure::from_service(error.into()))
    }
}

/// What can handle messages: an `async fn` of a [`Job`], of something [`FromJob`], or of both, in that order: `(order, job)`; or a
/// service of tower.
///
/// `Kind` tells them apart, and is never written out.
#[diagnostic::on_unimplemented(
    message = "`{Self}` handles no messages",
    note = "a handler is an `async fn` of a `Job`, of something that is `FromJob` as `Json<T>` is, or of both in the order `(Json<T>, Job)`",
    note = "it returns what is `IntoReply`, such as `()`, or a `Result` of that with an error that can be boxed"
)]
pub trait IntoHandler<Kind> {
    /// The service that it becomes.
    type Service: Service<Job, Response: IntoReply + Send + 'static, Error: Into<BoxError> + 'static, Future: Send + 'static>
        + Send
        + 'static;

    /// Makes the service.
    fn into_handler(self) -> Self::Service;
}

/// That it is a service already.
#[derive(Debug)]
pub struct IsService(());

impl<S> IntoHandler<IsService> for S
where
    S: Service<Job, Response: IntoReply + Send + 'static, Error: Into<BoxError> + 'static, Future: Send + 'static>
        + Send
        + 'static,
{
    type Service = S;

    fn into_handler(self) -> S {
        self
    }
}

/// A function as a service; `Args` tells what it takes.
pub struct HandlerFn<F, Args> {
    function: F,
    args: PhantomData<fn(Args)>,
}

impl<F: Clone, Args> Clone for HandlerFn<F, Args> {
    fn clone(&self) -> Self {
        Self { function: self.function.clone(), args: PhantomData }
    }
}

impl<F, Args> fmt::Debug for HandlerFn<F, Args> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerFn").finish_non_exhaustive()
    }
}

type ReplyOf<Fut> = <<Fut as Future>::Output as Handled>::Reply;
type Finish<O> = fn(O) -> Result<<O as Handled>::Reply, Failure>;
type Handling<Fut> = Map<Fut, Finish<<Fut as Future>::Output>>;
type Extracted<Fut> = Either<Handling<Fut>, Ready<Result<ReplyOf<Fut>, Failure>>>;

fn handling<Fut: Future<Output: Handled>>(future: Fut) -> Handling<Fut> {
    future.map(Fut::Output::into_result as Finish<Fut::Output>)
}

fn extracted<Fut: Future<Output: Handled>>(future: Result<Fut, Failure>) -> Extracted<Fut> {
    match future {
        Ok(future) => Either::Left(handling(future)),
        Err(failure) => Either::Right(ready(Err(failure))),
    }
}

macro_rules! functions {
    ($args:ty, [$($generic:ident)?], ($($arg:ty),*), $future:ident, |$function:ident, $job:ident| $call:expr) => {
        impl<F, Fut $(, $generic)?> IntoHandler<$args> for F
        where
            F: FnMut($($arg),*) -> Fut + Send + 'static,
            Fut: Future<Output: Handled> + Send + 'static,
            $($generic: FromJob + 'static,)?
        {
            type Service = HandlerFn<F, $args>;

            fn into_handler(self) -> Self::Service {
                HandlerFn { function: self, args: PhantomData }
            }
        }

        impl<F, Fut $(, $generic)?> Service<Job> for HandlerFn<F, $args>
        where
            F: FnMut($($arg),*) -> Fut,
            Fut: Future<Output: Handled>,
            $($generic: FromJob,)?
        {
            type Response = ReplyOf<Fut>;
            type Error = Failure;
            type Future = $future<Fut>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, $job: Job) -> Self::Future {
                let $function = &mut self.function;
                $call
            }
        }
    };
}

functions!((Job,), [], (Job), Handling, |function, job| handling(function(job)));
functions!((A,), [A], (A), Extracted, |function, job| extracted(A::from_job(&job).map(function)));
functions!((A, Job), [A], (A, Job), Extracted, |function, job| {
    extracted(A::from_job(&job).map(|argument| function(argument, job)))
});
