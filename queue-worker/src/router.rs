//! Many handlers in one worker.

use std::collections::HashMap;
use std::fmt;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::{FutureExt, TryFutureExt};
use tower_service::Service;

use crate::failure::{BoxError, Failure};
use crate::handler::IntoHandler;
use crate::job::Job;
use crate::reply::{IntoReply, Reply};

type Boxed = Box<
    dyn Service<Job, Response = Reply, Error = BoxError, Future = BoxFuture<'static, Result<Reply, BoxError>>> + Send,
>;
type Key = Box<dyn for<'a> Fn(&'a Job) -> Option<&'a str> + Send>;

/// Chooses a handler by the message: by a header, by its subject, or by what a function finds in it.
///
/// A message that no handler is for goes to the [`fallback`](Self::fallback); without one it is a dead letter that says so.
/// The future of a routed handler is boxed.
///
/// Which handler a message is for is known when it is there, so all have to be ready before it is taken: one that is not holds up the
/// others, and a limit that several share, such as a semaphore, needs room for all of them at once, or none ever begins.
///
/// ```
/// # use queue_core::{Client, Message, memory};
/// use queue_worker::{Job, Json, Router, Worker};
/// # #[derive(serde::Deserialize)] struct Order { id: u32 }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// # let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
/// let router = Router::by_header("type")
///     .route("order.created", |Json(order): Json<Order>| async move { println!("order {}", order.id) })
///     .route("order.paid", |job: Job| async move { println!("{:?}", job.text()) });
/// # let orders = client.sender("orders").await?;
/// # orders.send(Message::new(r#"{"id":7}"#).header("type", "order.created")).await?;
/// # let worker = Worker::new(client.receiver("orders").await?);
/// # let control = worker.control();
/// # let served = tokio::spawn(worker.serve(router));
/// # while control.counts().processed == 0 { tokio::task::yield_now().await }
/// # control.stop();
/// # assert!(served.await.unwrap().is_clean());
/// # Ok(())
/// # }
/// ```
pub struct Router {
    key: Key,
    routes: HashMap<String, usize>,
    handlers: Vec<Boxed>,
    fallback: Option<usize>,
    /// Those that are not ready for another message.
    unready: Vec<usize>,
}

impl Router {
    /// By what a function finds in the message.
    #[must_use]
    pub fn by(key: impl for<'a> Fn(&'a Job) -> Option<&'a str> + Send + 'static) -> Self {
        Self { key: Box::new(key), routes: HashMap::new(), handlers: Vec::new(), fallback: None, unready: Vec::new() }
    }

    /// By the text of a header.
    #[must_use]
    pub fn by_header(name: impl Into<String>) -> Self {
        let name = name.into();
        Self::by(move |job| job.message().headers().get(&name).and_then(|value| value.as_str()))
    }

    /// By the message's subject.
    #[must_use]
    pub fn by_subject() -> Self {
        Self::by(|job| job.message().get_subject())
    }

    /// Handles messages with this key. A later handler for the same key takes the place of the earlier one.
    #[must_use]
    pub fn route<Kind>(mut self, key: impl Into<String>, handler: impl IntoHandler<Kind>) -> Self {
        let index = self.add(handler);
        self.routes.insert(key.into(), index);
        self
    }

    /// Handles the messages that no other handler is for. Default: they are dead letters.
    #[must_use]
    pub fn fallback<Kind>(mut self, handler: impl IntoHandler<Kind>) -> Self {
        self.fallback = Some(self.add(handler));
        self
    }

    /// Whether there is a handler for this key.
    pub(crate) fn knows(&self, key: &str) -> bool {
        self.routes.contains_key(key)
    }

    fn add<Kind>(&mut self, handler: impl IntoHandler<Kind>) -> usize {
        self.handlers.push(Box::new(Erased(handler.into_handler())));
        self.unready.push(self.handlers.len() - 1);
        self.handlers.len() - 1
    }
}

impl Service<Job> for Router {
    type Response = Reply;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Reply, BoxError>>;

    /// Ready when all handlers are, because the message is not known yet.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        while let Some(index) = self.unready.last() {
            std::task::ready!(self.handlers[*index].poll_ready(cx))?;
            self.unready.pop();
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, job: Job) -> Self::Future {
        let key = (self.key)(&job);
        let index = key.and_then(|key| self.routes.get(key)).copied().or(self.fallback);
        let Some(index) = index else {
            let why = match key {
                Some(key) => format!("no handler is for {key:?}"),
                None => "the message does not say which handler it is for".to_owned(),
            };
            return async move { Err(Failure::permanent(why).into()) }.boxed();
        };
        self.unready.push(index);
        self.handlers[index].call(job)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut routes: Vec<_> = self.routes.keys().collect();
        routes.sort();
        f.debug_struct("Router").field("routes", &routes).field("fallback", &self.fallback.is_some()).finish()
    }
}

/// A service whose future is boxed.
struct Erased<S>(S);

impl<S> Service<Job> for Erased<S>
where
    S: Service<Job, Response: IntoReply + 'static, Error: Into<BoxError> + 'static, Future: Send + 'static>,
{
    type Response = Reply;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Reply, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, job: Job) -> Self::Future {
        let handled = self.0.call(job).map_err(Into::into);
        handled.map(|done| done?.into_reply().map_err(Into::into)).boxed()
    }
}
