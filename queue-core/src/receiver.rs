//! The handle that receives.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering as Atomic;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::Stream;
use tokio::time::{Instant, timeout_at};

use crate::address::Source;
use crate::broker::CloseReport;
use crate::capability::Capabilities;
use crate::delivery::{Batch, Delivery, hold};
use crate::error::{Error, ErrorKind, Result};
use crate::inbox::{Inbox, Run};
use crate::message::Message;
use crate::observe::{Processing, Receiving};
use crate::request::Replier;

/// Messages that [`Receiver::next`] fetches at once.
const FETCH: usize = 256;
mod open;

pub use open::{ReceiverBuilder, ReceiverConfig};
pub(crate) use open::{checked, copier, dead_letter_of, source_of};

/// Receives the messages of one source. Also a [`Stream`].
///
/// Whatever passes by itself (a lost connection, a broker that restarts) is waited out; an error means that somebody
/// has to look (`NotFound`, `Conflict`, `Unauthorized`), and is the last thing the receiver says. Dropped, it
/// releases what it has buffered; deliveries that are out can still be answered.
pub struct Receiver {
    inbox: Arc<Inbox>,
    current: Option<Run>,
    receiving: Receiving,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("source", self.source()).finish_non_exhaustive()
    }
}

impl Receiver {
    fn poll_run(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Option<Result<()>>> {
        if let Some(run) = &self.current {
            if self.inbox.is_running() && run.items.len() > 0 {
                return Poll::Ready(Some(Ok(())));
            }
            self.let_go();
        }
        // A queue that is never empty lets other tasks run too.
        let coop = ready!(tokio::task::coop::poll_proceed(cx));
        self.receiving.begin(self.inbox.subject());
        let fetched = ready!(self.inbox.poll_fetch(cx, max));
        coop.made_progress();
        match &fetched {
            Some(Ok(run)) => self.receiving.end(self.inbox.subject(), Ok(run.items.as_slice())),
            Some(Err(error)) => self.receiving.end(self.inbox.subject(), Err(error)),
            None => self.receiving.forget(),
        }
        match fetched {
            Some(Ok(run)) => {
                self.current = Some(run);
                self.note_buffered();
                Poll::Ready(Some(Ok(())))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Ready(None),
        }
    }

    fn note_buffered(&self) {
        let count = self.current.as_ref().map_or(0, |run| run.items.len());
        self.inbox.buffered.store(count, Atomic::Release);
    }

    /// Gives back what was fetched and not handed out.
    fn let_go(&mut self) {
        if let Some(run) = self.current.take() {
            self.inbox.buffered.store(0, Atomic::Release);
            self.inbox.release_run(run);
        }
    }

    fn poll_delivery(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delivery>>> {
        loop {
            match ready!(self.poll_run(cx, FETCH)) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
            if let Some(run) = &mut self.current
                && let Some(item) = run.items.next()
            {
                let held = hold(&run.fetch, run.next, item);
                run.next += 1;
                self.note_buffered();
                return Poll::Ready(Some(Ok(Delivery::new(held))));
            }
        }
    }

    /// Waits for the next message; `None` after [`stop`](Self::stop), [`close`](Self::close) or an error.
    ///
    /// # Cancel safety
    /// Dropped, no message is lost.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        poll_fn(|cx| self.poll_delivery(cx)).await
    }

    /// Waits for the next message.
    ///
    /// # Errors
    /// As [`next`](Self::next), and `Closed` at the end.
    ///
    /// # Cancel safety
    /// Dropped, no message is lost.
    pub async fn receive(&mut self) -> Result<Delivery> {
        match self.next().await {
            Some(delivery) => delivery,
            None => Err(self.ended()),
        }
    }

    fn ended(&self) -> Error {
        Error::closed("receiver").with_operation("receive").with_context("source", self.source())
    }

    /// Waits until there is a message, and returns it with those that are there too, up to `max`.
    ///
    /// # Errors
    /// As [`receive`](Self::receive); `InvalidInput` when `max` is 0.
    ///
    /// # Cancel safety
    /// Dropped, no message is lost.
    pub async fn receive_batch(&mut self, max: usize) -> Result<Batch> {
        if max == 0 {
            return Err(Error::new(ErrorKind::InvalidInput, "a batch has room for at least one message")
                .with_operation("receive"));
        }
        loop {
            match poll_fn(|cx| self.poll_run(cx, max)).await {
                Some(Ok(())) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(self.ended()),
            }
            let Some(mut run) = self.current.take() else { continue };
            let batch = if run.items.len() <= max {
                Batch::new(run)
            } else {
                let items: Vec<_> = run.items.by_ref().take(max).collect();
                let first = run.next;
                run.next += u32::try_from(items.len()).unwrap_or(u32::MAX);
                let fetch = run.fetch.clone();
                self.current = Some(run);
                Batch::part(fetch, first, items)
            };
            self.note_buffered();
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    /// As [`receive_batch`](Self::receive_batch), and waits at most this long; the batch may be empty.
    ///
    /// # Errors
    /// As [`receive_batch`](Self::receive_batch).
    ///
    /// # Cancel safety
    /// Dropped, no message is lost.
    pub async fn receive_batch_within(&mut self, max: usize, wait: Duration) -> Result<Batch> {
        match timeout_at(crate::memory::far(Instant::now(), wait), self.receive_batch(max)).await {
            Ok(batch) => batch,
            Err(_) => Ok(Batch::empty()),
        }
    }

    /// What the source can do, exactly.
    #[must_use]
    pub fn capabilities(&self) -> Arc<Capabilities> {
        self.inbox.capabilities.clone()
    }

    /// What is received.
    #[must_use]
    pub fn source(&self) -> &Source {
        &self.inbox.source
    }

    /// What answers the requests that are received.
    #[must_use]
    pub fn replier(&self) -> Replier {
        Replier::new(self.inbox.client.clone(), self.inbox.source.clone())
    }

    /// Observes the work on a message of this receiver; see [`Processing`].
    pub fn processing(&self, message: &Message) -> Processing {
        Processing::of_one(self.inbox.subject(), message)
    }

    /// Observes the work on messages of this receiver that are worked on together; see [`Processing`].
    pub fn processing_batch<'a, I>(&self, messages: I) -> Processing
    where
        I: IntoIterator<Item = &'a Message, IntoIter: ExactSizeIterator>,
    {
        Processing::of_batch(self.inbox.subject(), messages.into_iter())
    }

    /// A handle that controls the receiver from another task.
    #[must_use]
    pub fn control(&self) -> ReceiverControl {
        ReceiverControl(self.inbox.clone())
    }

    /// Fetches no more until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.inbox.consumer.set_paused(true);
    }

    /// Fetches again.
    pub fn resume(&self) {
        self.inbox.consumer.set_paused(false);
    }

    /// Waits until every answer given so far is with the broker, as far as the protocol can tell.
    ///
    /// # Errors
    /// The first answer that was refused; `Connection` when it could not be asked; `Closed`.
    pub async fn flush(&self) -> Result<()> {
        self.inbox.flush().await
    }

    /// Gives back what was fetched and not handed out, for other receivers; how many. To be used while paused: what is
    /// fetched later is buffered again. On Kafka the broker hands it to nobody else, and it is handed out later.
    pub fn give_back(&mut self) -> usize {
        let Some(run) = self.current.take() else { return 0 };
        self.inbox.buffered.store(0, Atomic::Release);
        let count = run.items.len();
        for (index, item) in (run.next..).zip(run.items) {
            self.inbox.release(hold(&run.fetch, index, item));
        }
        count
    }

    /// Hands out no more and gives back what is buffered; deliveries that are out can still be answered.
    pub async fn stop(&mut self) {
        self.let_go();
        self.inbox.stop().await;
    }

    /// Stops, waits at most this long for deliveries that are out, flushes the answers, and lets go of the rest.
    /// Closing twice is fine.
    pub async fn close(&mut self, within: Duration) -> CloseReport {
        self.let_go();
        self.inbox.close(crate::memory::far(Instant::now(), within)).await
    }
}

impl Stream for Receiver {
    type Item = Result<Delivery>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.poll_delivery(cx)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.let_go();
        self.inbox.abandon();
    }
}

/// Controls a receiver from another task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReceiverControl(Arc<Inbox>);

impl ReceiverControl {
    /// Fetches no more until [`resume`](Self::resume).
    pub fn pause(&self) {
        self.0.consumer.set_paused(true);
    }

    /// Fetches again.
    pub fn resume(&self) {
        self.0.consumer.set_paused(false);
    }

    /// As [`Receiver::flush`].
    ///
    /// # Errors
    /// As [`Receiver::flush`].
    pub async fn flush(&self) -> Result<()> {
        self.0.flush().await
    }

    /// As [`Receiver::stop`]; what the receiver has buffered is given back when it is next polled or dropped.
    pub async fn stop(&self) {
        self.0.stop().await;
    }

    /// As [`Receiver::close`].
    pub async fn close(&self, within: Duration) -> CloseReport {
        self.0.close(crate::memory::far(Instant::now(), within)).await
    }
}
