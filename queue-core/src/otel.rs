//! OpenTelemetry: the context of a trace in messages, and metrics (feature `otel`).
//!
//! * **Traces.** Install a propagator
//!   (`opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new())`), and every message that is sent in a
//!   span carries `traceparent` and `tracestate`, unless the program has set them itself. Install the layer of
//!   `tracing-opentelemetry`, and the library's own spans become part of the trace.
//! * **Metrics.** Call [`record_metrics`] once.

use opentelemetry::Context;
use opentelemetry::metrics::Meter;

use crate::message::Message;
use crate::observe::{metrics, trace};

/// The context that a message carries in its headers, by the global propagator; an empty one where it carries none. A
/// [`Delivery`](crate::Delivery) and the job of a worker dereference to their message.
///
/// ```
/// use opentelemetry::trace::TraceContextExt;
/// use queue_core::{Message, otel};
///
/// opentelemetry::global::set_text_map_propagator(opentelemetry_sdk::propagation::TraceContextPropagator::new());
/// let message =
///     Message::new("hello").header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
/// let context = otel::context(&message);
/// assert_eq!(context.span().span_context().trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
/// ```
#[must_use]
pub fn context(message: &Message) -> Context {
    trace::context(message)
}

/// Puts a context into the headers of a message, by the global propagator. Headers that are there stay. Sending does this by
/// itself with the context of its span.
pub fn inject(context: &Context, message: &mut Message) {
    trace::inject(context, message);
}

/// Records the metrics of all clients of the process, of those that are open too, with this meter from now on. Once: the
/// first call counts, any later one answers false and changes nothing. Before it nothing is measured.
///
/// ```
/// let recorded = queue_core::otel::record_metrics(&opentelemetry::global::meter("orders-service"));
/// assert!(recorded);
/// ```
pub fn record_metrics(meter: &Meter) -> bool {
    metrics::record(meter)
}
