//! The work on messages.

use std::fmt;
use std::time::{Instant, SystemTime};

use tracing::Span;

use super::{Subject, fail, metrics, span, trace};
use crate::message::Message;

/// The `error.type` of work that was dropped before it ended.
const DROPPED: &str = "dropped";

/// The work on a message, or on a batch, as spans and metrics see it. The worker makes one for each call of a handler; a
/// program that works on deliveries by itself makes its own by [`Delivery::processing`](crate::Delivery::processing).
///
/// Its span, `process`, has the sender's as its parent; that of a batch has a link to each. While nobody listens it is
/// nothing and costs nothing. Dropped before its [`end`](Self::end), the work counts as failed, with the `error.type`
/// `dropped`.
///
/// ```
/// # use queue_core::{Client, memory};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// # let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
/// # client.sender("orders").await?.send("hello").await?;
/// let mut inbox = client.receiver("orders").await?;
/// let delivery = inbox.receive().await?;
/// let mut processing = delivery.processing();
/// match processing.run(async { delivery.text().ok_or("not text") }).await {
///     Ok(_) => delivery.ack(),
///     Err(why) => {
///         processing.failed("not_text", &why);
///         delivery.reject(why)
///     }
/// };
/// processing.end();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use = "dropped before its end, the work counts as failed"]
pub struct Processing(Option<Box<Observed>>);

#[derive(Debug)]
struct Observed {
    subject: Subject,
    span: Span,
    /// Where the message comes from, for programs whose spans are not those of `tracing`.
    remote: trace::Remote,
    began: Instant,
    sent: Vec<SystemTime>,
    error: Option<&'static str>,
}

impl Processing {
    #[inline]
    pub(crate) fn of_one(subject: &Subject, message: &Message) -> Self {
        let nobody = tracing::level_filters::LevelFilter::current() < tracing::Level::INFO;
        if nobody && message.headers().is_empty() && !metrics::is_on() {
            return Self(None);
        }
        Self::begin_one(subject, message)
    }

    fn begin_one(subject: &Subject, message: &Message) -> Self {
        let span = span!(
            INFO,
            "consumer",
            "process",
            "process",
            subject,
            messaging.message.id = message.get_id(),
            messaging.message.body.size = message.payload().len(),
        );
        let remote = trace::follow(&span, message);
        if span.is_disabled() && remote.is_none() && !metrics::is_on() {
            return Self(None);
        }
        Self::begin(subject, span, remote, message.sent_at().into_iter().collect())
    }

    pub(crate) fn of_batch<'a>(subject: &Subject, messages: impl ExactSizeIterator<Item = &'a Message>) -> Self {
        let span =
            span!(INFO, "consumer", "process", "process", subject, messaging.batch.message_count = messages.len());
        if span.is_disabled() && !metrics::is_on() {
            return Self(None);
        }
        let look = |message: &Message| {
            if !span.is_disabled() {
                trace::link(&span, message);
            }
            message.sent_at()
        };
        let sent = messages.filter_map(look).collect();
        Self::begin(subject, span, trace::Remote::none(), sent)
    }

    fn begin(subject: &Subject, span: Span, remote: trace::Remote, sent: Vec<SystemTime>) -> Self {
        let subject = subject.clone();
        Self(Some(Box::new(Observed { subject, span, remote, began: Instant::now(), sent, error: None })))
    }

    /// The span; one that is disabled while nobody listens.
    #[must_use]
    pub fn span(&self) -> Span {
        self.0.as_ref().map_or_else(Span::none, |observed| observed.span.clone())
    }

    /// Makes its span the current one, and the sender's context that of OpenTelemetry, as long as the guard lives. Not to be
    /// held over an `await`: see [`run`](Self::run).
    #[inline]
    pub fn enter(&self) -> EnteredProcessing<'_> {
        let Some(observed) = &self.0 else { return EnteredProcessing(None) };
        EnteredProcessing(Some((observed.remote.attach(), observed.span.enter())))
    }

    /// Runs a future inside of its span.
    ///
    /// # Cancel safety
    /// That of the future.
    pub async fn run<F: Future>(&self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| {
            let _entered = self.enter();
            future.as_mut().poll(cx)
        })
        .await
    }

    /// The work failed, for a reason of this class (`error.type`: few values, such as `timeout`). The first one counts.
    pub fn failed(&mut self, error_type: &'static str, why: &dyn fmt::Display) {
        if let Some(observed) = &mut self.0
            && observed.error.is_none()
        {
            observed.error = Some(error_type);
            fail(&observed.span, error_type, why);
        }
    }

    /// Whether anybody listens.
    #[must_use]
    #[inline]
    pub fn is_observed(&self) -> bool {
        self.0.is_some()
    }

    /// The work is over.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        let Some(observed) = self.0.take() else { return };
        metrics::processed(&observed.subject, observed.began.elapsed(), &observed.sent, observed.error);
    }
}

impl Drop for Processing {
    #[inline]
    fn drop(&mut self) {
        if self.0.is_some() {
            self.failed(DROPPED, &"the work was dropped before its end");
            self.finish();
        }
    }
}

/// As long as this lives the span of a [`Processing`] is the current one. Belongs to its thread.
#[derive(Debug)]
#[must_use = "dropped at once, nothing runs inside of the span"]
#[allow(dead_code, reason = "held to be dropped, in this order")]
pub struct EnteredProcessing<'a>(Option<(trace::Attached, tracing::span::Entered<'a>)>);
