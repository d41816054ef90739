//! A request of an application.

use std::fmt;
use std::future::IntoFuture;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::{OPERATION, late, read};
use crate::address::Address;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Outcome, Result};
use crate::headers::RESERVED_PREFIX;
use crate::message::Message;
use crate::observe::{Sending, Subject};

/// How long a request waits unless told otherwise.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Sends a request and waits for its reply; await it. See [`Client::request`].
#[must_use = "a builder does nothing until it is awaited"]
pub struct RequestBuilder {
    target: Result<(Client, Address)>,
    message: Message,
    timeout: Duration,
}

impl fmt::Debug for RequestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBuilder").field("message", &self.message).field("timeout", &self.timeout).finish()
    }
}

impl RequestBuilder {
    pub(crate) fn new(target: Result<(Client, Address)>, message: Message) -> Self {
        Self { target, message, timeout: TIMEOUT }
    }

    /// How long it may take in all, up to 12 h where the broker has no requests of its own. Default: 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl IntoFuture for RequestBuilder {
    type Output = Result<Message>;
    type IntoFuture = BoxFuture<'static, Result<Message>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let Self { target, message, timeout } = self;
            let (client, to) = target.map_err(|e| e.with_operation(OPERATION))?;
            let reply = ask(&client, &to, message, timeout).await.and_then(read);
            reply.map_err(|e| e.with_operation(OPERATION).with_context("address", &to))
        })
    }
}

async fn ask(client: &Client, to: &Address, message: Message, timeout: Duration) -> Result<Message> {
    let inner = client.inner();
    inner.check_open()?;
    if to.is_topic() {
        return Err(Error::unsupported("a request goes to a queue: it has one answer"));
    }
    if message.get_delay().is_some_and(|delay| !delay.is_zero()) {
        return Err(Error::unsupported("a request is not delayed"));
    }
    if let Some((name, _)) = message.headers().iter().find(|(name, _)| name.starts_with(RESERVED_PREFIX)) {
        let why = "header names that start with `anyqueue-` are the library's own";
        return Err(Error::new(ErrorKind::InvalidInput, why).with_context("header", name));
    }
    if timeout.is_zero() {
        return Err(late(Outcome::NotSent));
    }
    let asking = async {
        match inner.broker.requests() {
            Some(own) => {
                let mut message = message;
                let subject = Subject::address(inner.system, to);
                let able = inner.broker.capabilities();
                let mut sending = Sending::begin(&subject, std::slice::from_mut(&mut message), &able);
                let reply = own.request(to, message, crate::memory::far(Instant::now(), timeout)).await;
                sending.end_one(&reply);
                reply
            }
            None => inner.desk.request(inner, to, message, timeout).await,
        }
    };
    tokio::select! {
        biased;
        () = inner.desk.closing() => Err(Error::closed("client").with_outcome(Outcome::Unknown)),
        reply = asking => reply,
    }
}
