//! The context of a trace, in the headers of messages.

use opentelemetry::propagation::{Extractor, Injector};
use opentelemetry::trace::TraceContextExt;
use opentelemetry::{Context, ContextGuard, global};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::capability::Capabilities;
use crate::headers::{HeaderValue, Headers, RESERVED_PREFIX};
use crate::message::Message;

/// What says where a message comes from; `tracestate` belongs to it.
const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Room for what carrying headers takes besides their own bytes: their types, or the library's note where there are many.
const CARRIED: usize = 256;

/// Headers as what a propagator reads.
struct Carried<'a>(&'a Headers);

impl Extractor for Carried<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(HeaderValue::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name).collect()
    }
}

/// What a propagator writes.
#[derive(Default)]
struct Fields(Vec<(String, String)>);

impl Injector for Fields {
    fn set(&mut self, key: &str, value: String) {
        // A propagator says by an empty one that there is nothing to say.
        if !value.is_empty() && !key.starts_with(RESERVED_PREFIX) {
            self.0.push((key.to_owned(), value));
        }
    }
}

/// The context that the headers of a message carry.
pub(crate) fn context(message: &Message) -> Context {
    // Not the current one: a message that carries nothing comes from nowhere.
    let none = Context::new();
    if message.headers().is_empty() {
        return none;
    }
    global::get_text_map_propagator(|propagator| propagator.extract_with_context(&none, &Carried(message.headers())))
}

fn fields(context: &Context) -> Fields {
    let mut fields = Fields::default();
    global::get_text_map_propagator(|propagator| propagator.inject_context(context, &mut fields));
    fields
}

/// Puts a context into the headers of a message, as far as the message says nothing of it by itself.
pub(crate) fn inject(context: &Context, message: &mut Message) {
    put(&fields(context), message, usize::MAX, usize::MAX);
}

fn put(fields: &Fields, message: &mut Message, most_headers: usize, most_bytes: usize) {
    let headers = message.headers();
    let is_said = |name: &str| headers.get(name).is_some();
    let traced = is_said(TRACEPARENT);
    let new: Vec<_> =
        fields.0.iter().filter(|(name, _)| !(is_said(name) || traced && name == TRACESTATE)).cloned().collect();
    let bytes: usize = new.iter().map(|(name, value)| name.len() + value.len()).sum();
    // A message is never refused for what nobody has put on it; what is escaped takes up to as much again.
    if headers.len() + new.len() <= most_headers && message.size().saturating_add(2 * bytes + CARRIED) <= most_bytes {
        let headers = message.headers_mut();
        new.into_iter().for_each(|(name, value)| headers.append(name, value));
    }
}

/// The context that is sent with messages: the span's, else that in which the program runs.
fn current(span: &Span) -> Option<Context> {
    if !span.is_disabled() {
        let context = span.context();
        if context.has_active_span() {
            return Some(context);
        }
    }
    if Context::map_current(|current| current.has_active_span()) {
        return Some(Context::current());
    }
    // A bridge may be told not to make its spans the current ones of OpenTelemetry.
    let current = Span::current();
    if current.is_disabled() {
        return None;
    }
    Some(current.context()).filter(Context::has_active_span)
}

/// Sends the context of the span, or that of the program, with the messages.
pub(crate) fn carry(span: &Span, messages: &mut [Message], able: &Capabilities) {
    let Some(context) = current(span) else { return };
    let fields = fields(&context);
    if !fields.0.is_empty() {
        messages.iter_mut().for_each(|message| put(&fields, message, able.max_headers, able.max_message_bytes));
    }
}

/// Links the span to where the message comes from.
pub(crate) fn link(span: &Span, message: &Message) {
    let context = context(message);
    if context.has_active_span() {
        span.add_link(context.span().span_context().clone());
    }
}

/// Makes the span a child of where the message comes from; a context that is left is of no span of `tracing`.
pub(crate) fn follow(span: &Span, message: &Message) -> Remote {
    if message.headers().is_empty() {
        return Remote(None);
    }
    let context = context(message);
    if !context.has_active_span() {
        return Remote(None);
    }
    if !span.is_disabled() && span.set_parent(context.clone()).is_ok() {
        return Remote(None);
    }
    Remote(Some(context))
}

/// Where a message comes from.
#[derive(Debug)]
pub(crate) struct Remote(Option<Context>);

pub(crate) type Attached = Option<ContextGuard>;

impl Remote {
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn attach(&self) -> Attached {
        self.0.clone().map(Context::attach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_goes_along_where_there_is_room() {
        let field = || Fields(vec![(TRACEPARENT.to_owned(), "x".repeat(55))]);
        let put_into = |payload: usize, most_headers: usize, most_bytes: usize| {
            let mut message = Message::new(vec![0; payload]).header("own", "1");
            put(&field(), &mut message, most_headers, most_bytes);
            message.headers().get(TRACEPARENT).is_some()
        };
        assert!(put_into(1000, usize::MAX, usize::MAX));
        assert!(put_into(1000, 2, 1000 + 4 + 2 * 66 + CARRIED));
        assert!(!put_into(1000, 1, usize::MAX), "there is no room for another header");
        assert!(!put_into(1000, 2, 1000 + 4 + 2 * 66 + CARRIED - 1), "nor for as many bytes");
    }
}
