//! Fetches, from the first wait to the messages.

use std::time::Instant;

use tracing::Span;

use super::{Subject, error_type, fail, metrics, span, trace};
use crate::consumer::Received;
use crate::error::Error;

/// A fetch under way; nothing while nobody listens, or nothing is fetched.
#[derive(Debug, Default)]
pub(crate) struct Receiving(Option<Box<(Span, Instant)>>);

impl Receiving {
    /// Begins, unless it has.
    pub(crate) fn begin(&mut self, subject: &Subject) {
        if self.0.is_some() {
            return;
        }
        let span = span!(
            DEBUG,
            "client",
            "receive",
            "receive",
            subject,
            messaging.batch.message_count = tracing::field::Empty
        );
        if !span.is_disabled() || metrics::is_on() {
            self.0 = Some(Box::new((span, Instant::now())));
        }
    }

    /// What came.
    pub(crate) fn end(&mut self, subject: &Subject, fetched: Result<&[Received], &Error>) {
        let Some(observed) = self.0.take() else { return };
        let (span, began) = *observed;
        let items = fetched.unwrap_or_default();
        if let Err(error) = fetched {
            fail(&span, error_type(error), error);
        }
        if !span.is_disabled() {
            span.record("messaging.batch.message_count", items.len());
            items.iter().filter_map(|item| item.message.as_ref().ok()).for_each(|message| trace::link(&span, message));
        }
        metrics::received(subject, items.len(), began.elapsed(), fetched.err().map(error_type));
    }

    /// Nothing is fetched any more.
    pub(crate) fn forget(&mut self) {
        self.0 = None;
    }
}
