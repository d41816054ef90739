//! Whoever has tasks run.

use std::fmt;
use std::future::IntoFuture;
use std::marker::PhantomData;
use std::time::Duration;

use futures::future::BoxFuture;
use queue_core::{Address, Client, Error, ErrorKind, Message, Outcome, Receipt, Result};

use super::{TASK, TASKS};
use crate::codec::{Decode, Encode, Json};

/// Has tasks run by whoever serves [`Tasks`](super::Tasks). Cheap to clone.
///
/// ```
/// # use queue_core::Client;
/// # async fn ask(client: Client) -> queue_core::Result<()> {
/// use std::time::Duration;
/// use queue_worker::TaskClient;
///
/// let images = TaskClient::new(&client).at("image-tasks")?;
/// let area: u32 = images.run("resize", &(4, 3)).timeout(Duration::from_secs(60)).await?;
/// images.send("forget", &area).await?;
/// # Ok(())
/// # }
/// ```
pub struct TaskClient<C = Json> {
    client: Client,
    to: Result<Address>,
    codec: PhantomData<fn() -> C>,
}

impl TaskClient {
    /// Tasks at [`TASKS`], with arguments and results as JSON.
    #[must_use]
    pub fn new(client: &Client) -> Self {
        Self { client: client.clone(), to: TASKS.parse(), codec: PhantomData }
    }
}

impl<C> TaskClient<C> {
    /// The same at another queue.
    ///
    /// # Errors
    /// `InvalidInput`: that is no address.
    pub fn at<A: TryInto<Address>>(mut self, to: A) -> Result<Self>
    where
        Error: From<A::Error>,
    {
        self.to = Ok(to.try_into()?);
        Ok(self)
    }

    /// The same with another codec.
    #[must_use]
    pub fn codec<D>(&self) -> TaskClient<D> {
        TaskClient { client: self.client.clone(), to: self.to.clone(), codec: PhantomData }
    }

    /// Has a task run and waits for its result; await what is returned. See [`TaskCall`].
    pub fn run<A, T>(&self, name: &str, arguments: &A) -> TaskCall<T, C>
    where
        C: Encode<A> + Decode<T>,
    {
        let message = message::<A, C>(&self.client, name, arguments);
        TaskCall { client: self.client.clone(), to: self.to.clone(), message, timeout: None, types: PhantomData }
    }

    /// Has a task run some time: its result goes nowhere, and it is a dead letter when it fails. The queue is made when it is
    /// missing. A sender is opened for it; [`message`](Self::message) is for senders of your own.
    ///
    /// # Errors
    /// `Codec`: the arguments have no form in this codec. Those of opening a sender and of
    /// [`Sender::send`](queue_core::Sender::send).
    ///
    /// # Cancel safety
    /// As [`Sender::send`](queue_core::Sender::send).
    pub async fn send<A>(&self, name: &str, arguments: &A) -> Result<Receipt>
    where
        C: Encode<A>,
    {
        let message = message::<A, C>(&self.client, name, arguments)?;
        self.client.sender(self.to.clone()?).await?.send(message).await
    }

    /// The message that has a task run, to give it a key, a delay or headers.
    ///
    /// # Errors
    /// `Codec`: the arguments have no form in this codec.
    pub fn message<A>(&self, name: &str, arguments: &A) -> Result<Message>
    where
        C: Encode<A>,
    {
        message::<A, C>(&self.client, name, arguments)
    }
}

impl<C> Clone for TaskClient<C> {
    fn clone(&self) -> Self {
        self.codec()
    }
}

impl<C> fmt::Debug for TaskClient<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskClient").field("to", &self.to).finish_non_exhaustive()
    }
}

fn message<A, C: Encode<A>>(client: &Client, name: &str, arguments: &A) -> Result<Message> {
    match C::message(arguments, &client.capabilities()) {
        Ok(message) => Ok(message.header(TASK, name.to_owned())),
        Err(error) => {
            let why = format!("the arguments cannot be sent as {}: {error}", C::CONTENT_TYPE);
            Err(Error::new(ErrorKind::Codec, why).with_operation("run task").with_context("task", name))
        }
    }
}

/// A task that is to run; await it for its result.
///
/// # Errors
/// Those of [`Client::request`]: `Remote` with what the task said is its own error, or that nobody knows it. `Codec`: the
/// arguments have no form in this codec (outcome `NotSent`), or the result is another than expected (`Unknown`: it ran).
///
/// # Cancel safety
/// As [`Client::request`]: the task may run all the same.
#[must_use = "a task does not run until it is awaited"]
pub struct TaskCall<T, C = Json> {
    client: Client,
    to: Result<Address>,
    message: Result<Message>,
    timeout: Option<Duration>,
    types: PhantomData<fn() -> (T, C)>,
}

impl<T, C> TaskCall<T, C> {
    /// At another queue. Default: that of the client, [`TASKS`].
    ///
    /// # Errors
    /// `InvalidInput`: that is no address.
    pub fn at<A: TryInto<Address>>(mut self, to: A) -> Result<Self>
    where
        Error: From<A::Error>,
    {
        self.to = Ok(to.try_into()?);
        Ok(self)
    }

    /// How long it may take in all, attempts included. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

impl<T: 'static, C: Decode<T>> IntoFuture for TaskCall<T, C> {
    type Output = Result<T>;
    type IntoFuture = BoxFuture<'static, Result<T>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let request = self.client.request(self.to?, self.message?);
            let reply = match self.timeout {
                Some(timeout) => request.timeout(timeout).await,
                None => request.await,
            };
            C::value(&reply?).map_err(|error| {
                let why = format!("the result of the task cannot be read: {error}");
                Error::new(ErrorKind::Codec, why).with_operation("run task").with_outcome(Outcome::Unknown)
            })
        })
    }
}

impl<T, C> fmt::Debug for TaskCall<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskCall").field("to", &self.to).field("message", &self.message).finish_non_exhaustive()
    }
}

/// Tasks by the client itself, at [`TASKS`] and as JSON; a [`TaskClient`] has them elsewhere or otherwise.
#[cfg(feature = "json")]
pub trait RunTask {
    /// Has a task run and waits for its result: `client.run_task("resize", &arguments).await?`. See [`TaskCall`].
    fn run_task<A: serde::Serialize, T: serde::de::DeserializeOwned>(&self, name: &str, arguments: &A) -> TaskCall<T>;

    /// Has a task run some time, as [`TaskClient::send`] does.
    ///
    /// # Errors
    /// As [`TaskClient::send`].
    ///
    /// # Cancel safety
    /// As [`TaskClient::send`].
    fn send_task<A: serde::Serialize + Sync>(
        &self,
        name: &str,
        arguments: &A,
    ) -> impl Future<Output = Result<Receipt>> + Send;
}

#[cfg(feature = "json")]
impl RunTask for Client {
    fn run_task<A: serde::Serialize, T: serde::de::DeserializeOwned>(&self, name: &str, arguments: &A) -> TaskCall<T> {
        TaskClient::new(self).run(name, arguments)
    }

    async fn send_task<A: serde::Serialize + Sync>(&self, name: &str, arguments: &A) -> Result<Receipt> {
        TaskClient::new(self).send(name, arguments).await
    }
}
