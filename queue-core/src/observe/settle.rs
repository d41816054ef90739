//! Answers.

use tracing::span::EnteredSpan;

use super::{Subject, span, trace};
use crate::consumer::Received;
use crate::message::Message;

/// The span of an answer to a message, entered; linked to where the message comes from.
#[inline]
pub(crate) fn settle(subject: &Subject, operation: &'static str, message: &Message) -> Option<EnteredSpan> {
    if tracing::level_filters::LevelFilter::current() < tracing::Level::DEBUG {
        return None;
    }
    Some(begin(subject, operation, message))
}

fn begin(subject: &Subject, operation: &'static str, message: &Message) -> EnteredSpan {
    let span = span!(DEBUG, "client", "settle", operation, subject, messaging.message.id = message.get_id());
    if !span.is_disabled() {
        trace::link(&span, message);
    }
    span.entered()
}

/// The span of an ack of many messages, entered.
pub(crate) fn settle_batch(subject: &Subject, items: &[Received]) -> EnteredSpan {
    let span = span!(DEBUG, "client", "settle", "ack", subject, messaging.batch.message_count = items.len());
    if !span.is_disabled() {
        items.iter().filter_map(|item| item.message.as_ref().ok()).for_each(|message| trace::link(&span, message));
    }
    span.entered()
}
