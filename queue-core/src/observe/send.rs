//! Sends, from the handle to the verdict.

use std::time::Instant;

use tracing::Span;

use super::{Subject, error_type, fail, metrics, span, trace};
use crate::capability::Capabilities;
use crate::error::Error;
use crate::message::Message;

/// A send under way; nothing while nobody listens.
#[derive(Debug)]
pub(crate) struct Sending(Option<Box<Observed>>);

#[derive(Debug)]
struct Observed {
    subject: Subject,
    span: Span,
    count: usize,
    began: Instant,
}

impl Sending {
    /// Begins the span of a send, and gives the messages its context.
    pub(crate) fn begin(subject: &Subject, messages: &mut [Message], able: &Capabilities) -> Self {
        let span = span_of(subject, messages);
        trace::carry(&span, messages, able);
        if span.is_disabled() && !metrics::is_on() {
            return Self(None);
        }
        let observed = Observed { subject: subject.clone(), span, count: messages.len(), began: Instant::now() };
        Self(Some(Box::new(observed)))
    }

    /// Nothing to be observed.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Every message has its verdict; so many failed, the first for this reason. Told once.
    pub(crate) fn end(&mut self, failed: usize, error: Option<&Error>) {
        let Some(observed) = self.0.take() else { return };
        if let Some(error) = error {
            fail(&observed.span, error_type(error), error);
        }
        metrics::sent(&observed.subject, observed.count, failed, observed.began.elapsed(), error.map(error_type));
    }

    /// One message has its verdict.
    #[inline]
    pub(crate) fn end_one<T>(&mut self, verdict: &Result<T, Error>) {
        if self.0.is_some() {
            self.end(usize::from(verdict.is_err()), verdict.as_ref().err());
        }
    }

    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }
}

fn span_of(subject: &Subject, messages: &[Message]) -> Span {
    match messages {
        [message] => span!(
            INFO,
            "producer",
            "send",
            "send",
            subject,
            messaging.message.id = message.get_id(),
            messaging.message.body.size = message.payload().len(),
        ),
        _ => span!(INFO, "producer", "send", "send", subject, messaging.batch.message_count = messages.len()),
    }
}
