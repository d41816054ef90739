//! Observation: spans with the names of OpenTelemetry's conventions for messaging, the context of a trace in messages, and
//! metrics. What nobody listens to costs a look at a few words that never change.

use std::fmt;
use std::sync::Arc;

use crate::address::{Address, Source};
use crate::error::{Error, ErrorKind};

#[cfg(feature = "otel")]
pub(crate) mod metrics;
#[cfg(feature = "otel")]
pub(crate) mod trace;

#[cfg(not(feature = "otel"))]
mod without;
#[cfg(not(feature = "otel"))]
pub(crate) use without::{metrics, trace};

mod process;
mod receive;
mod send;
mod settle;

pub use process::{EnteredProcessing, Processing};
pub(crate) use receive::Receiving;
pub(crate) use send::Sending;
pub(crate) use settle::{settle, settle_batch};

/// The target of all spans, by which a program filters them.
pub(crate) const TARGET: &str = "anyqueue";

/// What spans and metrics are about: an address of a broker, and who receives from it.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) system: &'static str,
    pub(crate) address: Address,
    pub(crate) group: Option<Arc<str>>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("system", &self.system).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Subject {
    pub(crate) fn address(system: &'static str, address: &Address) -> Self {
        Self { system, address: address.clone(), group: None }
    }

    pub(crate) fn source(system: &'static str, source: &Source) -> Self {
        Self { system, address: source.address.clone(), group: source.group.as_deref().map(Into::into) }
    }
}

/// A broker's name in the conventions, by its driver's.
pub(crate) fn system(driver: &'static str) -> &'static str {
    match driver {
        "sqs" => "aws_sqs",
        other => other,
    }
}

/// The value of `error.type`.
pub(crate) fn error_type(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Connection => "connection",
        ErrorKind::Timeout => "timeout",
        ErrorKind::NotFound => "not_found",
        ErrorKind::Conflict => "conflict",
        ErrorKind::Unauthorized => "unauthorized",
        ErrorKind::TooLarge => "too_large",
        ErrorKind::InvalidInput => "invalid_input",
        ErrorKind::InvalidConfig => "invalid_config",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::Unroutable => "unroutable",
        ErrorKind::Rejected => "rejected",
        ErrorKind::LeaseLost => "lease_lost",
        ErrorKind::Remote => "remote",
        ErrorKind::Throttled => "throttled",
        ErrorKind::Codec => "codec",
        ErrorKind::Closed => "closed",
        ErrorKind::Internal => "internal",
    }
}

/// Marks a span as failed.
fn fail(span: &tracing::Span, error_type: &str, why: &dyn fmt::Display) {
    span.record("error.type", error_type);
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", tracing::field::display(why));
}

/// A span about a subject. What comes behind the operation is added to what all have.
macro_rules! span {
    ($level:ident, $kind:literal, $type:literal, $operation:expr, $subject:expr, $($more:tt)*) => {
        tracing::span!(
            target: crate::observe::TARGET,
            tracing::Level::$level,
            $type,
            otel.name = format_args!("{} {}", $operation, $subject.address.name()),
            otel.kind = $kind,
            otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
            error.type = tracing::field::Empty,
            messaging.system = $subject.system,
            messaging.destination.name = $subject.address.name(),
            messaging.consumer.group.name = $subject.group.as_deref(),
            messaging.operation.type = $type,
            messaging.operation.name = $operation,
            $($more)*
        )
    };
}
use span;
