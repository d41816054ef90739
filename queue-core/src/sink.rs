//! A sender as a `Sink`.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::{FutureExt as _, Sink};

use crate::error::{Error, Result};
use crate::message::Message;
use crate::sender::Sender;
use crate::verdict::Verdict;

/// A [`Sink`] over a [`Sender`]: ready while there is room, flushed when every message has its verdict.
///
/// The first failure of a message comes out of the next call and is told once.
///
/// ```
/// # use queue_core::{Client, Message, memory};
/// use futures::SinkExt as _;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// # let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
/// let mut sink = client.sender("orders").await?.sink();
/// sink.feed(Message::new("a")).await?;
/// sink.send(Message::new("b")).await?; // feeds and flushes
/// # Ok(())
/// # }
/// ```
pub struct SenderSink {
    sender: Sender,
    submitting: Option<BoxFuture<'static, Result<Verdict>>>,
    verdicts: FuturesUnordered<Verdict>,
}

impl SenderSink {
    pub(crate) fn new(sender: Sender) -> Self {
        Self { sender, submitting: None, verdicts: FuturesUnordered::new() }
    }

    fn poll_submitted(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Some(submitting) = &mut self.submitting {
            let verdict = ready!(submitting.poll_unpin(cx));
            self.submitting = None;
            self.verdicts.push(verdict?);
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for SenderSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SenderSink").field("sender", &self.sender).finish_non_exhaustive()
    }
}

impl Sink<Message> for SenderSink {
    type Error = Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        // Verdicts that are there already are taken, so that they do not pile up.
        while let Poll::Ready(Some(verdict)) = self.verdicts.poll_next_unpin(cx) {
            verdict?;
        }
        self.poll_submitted(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, message: Message) -> Result<()> {
        let sender = self.sender.clone();
        self.submitting = Some(Box::pin(async move { sender.submit(message).await }));
        Ok(())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.poll_submitted(cx))?;
        while let Some(verdict) = ready!(self.verdicts.poll_next_unpin(cx)) {
            verdict?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.poll_flush(cx)
    }
}
