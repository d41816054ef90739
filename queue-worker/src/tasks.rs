//! Named tasks with results, over requests and replies.

mod client;

use std::fmt;
use std::future::ready;
use std::marker::PhantomData;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::BoxFuture;
use tower_service::Service;

use crate::codec::{Decode, Encode, Json};
use crate::failure::{BoxError, Failure};
use crate::job::Job;
use crate::reply::Reply;
use crate::router::Router;
use crate::typed::Typed;

#[cfg(feature = "json")]
pub use self::client::RunTask;
pub use self::client::{TaskCall, TaskClient};

/// Where tasks go unless told otherwise.
pub const TASKS: &str = "tasks";
/// The header that names a task. The arguments are the payload.
pub const TASK: &str = "task";

/// The tasks that a worker knows, by their names: a handler of a [`Worker`](crate::Worker) at the address [`TASKS`], or where
/// its receiver is.
///
/// A task is an `async fn` of its arguments; its result is the reply to whoever [runs](RunTask::run_task) it. Errors are
/// those of handlers: temporary ones are tried again, others reach the caller. One that the worker does not know is a
/// permanent error. Arguments and results are JSON unless there is [another codec](Self::with_codec).
///
/// ```
/// # use queue_core::{Client, memory};
/// use queue_worker::{Failure, RunTask, Tasks, Worker, TASKS};
///
/// async fn resize((width, height): (u32, u32)) -> Result<u32, Failure> {
///     Ok(width * height)
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
/// let worker = Worker::new(client.receiver(TASKS).await?);
/// let control = worker.control();
/// let served = tokio::spawn(worker.serve(Tasks::new().task("resize", resize)));
///
/// let area: u32 = client.run_task("resize", &(4, 3)).await?;
/// assert_eq!(area, 12);
/// # control.stop();
/// # assert!(served.await.unwrap().errors.is_empty());
/// # Ok(())
/// # }
/// ```
pub struct Tasks<C = Json> {
    router: Router,
    count: usize,
    codec: PhantomData<fn() -> C>,
}

impl Tasks {
    /// None yet; their arguments and results are JSON.
    #[must_use]
    pub fn new() -> Self {
        Self::with_codec()
    }

    /// None yet, with arguments and results in this codec.
    #[must_use]
    pub fn with_codec<C>() -> Tasks<C> {
        Tasks { router: Router::by_header(TASK), count: 0, codec: PhantomData }
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl<C: 'static> Tasks<C> {
    /// Runs a function for the task of this name. A later one of the same name takes the place of the earlier one.
    #[must_use]
    pub fn task<A, T, E, F, Fut>(mut self, name: impl Into<String>, mut function: F) -> Self
    where
        F: FnMut(A) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, E>> + Send + 'static,
        C: Decode<A> + Encode<T>,
        A: 'static,
        T: Send + 'static,
        E: Into<BoxError> + 'static,
    {
        let name = name.into();
        if !self.router.knows(&name) {
            self.count += 1;
        }
        let handler =
            move |arguments: Typed<A, C>| function(arguments.into_inner()).map(|done| done.map(Typed::<T, C>::new));
        self.router = self.router.route(name, handler);
        self
    }
}

impl<C> Service<Job> for Tasks<C> {
    type Response = Reply;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Reply, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.router.poll_ready(cx)
    }

    fn call(&mut self, job: Job) -> Self::Future {
        let why = match job.headers().get(TASK).and_then(|name| name.as_str()) {
            Some(name) if self.router.knows(name) => return self.router.call(job),
            // Not which others there are: whoever asks may be a stranger.
            Some(name) => format!("there is no task {name:?} among the {} of this worker", self.count),
            None => format!("the message has no header `{TASK}` that names a task"),
        };
        ready(Err(Failure::permanent(why).into())).boxed()
    }
}

impl<C> fmt::Debug for Tasks<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("router", &self.router).finish()
    }
}
