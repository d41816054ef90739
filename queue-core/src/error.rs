//! The one error type of the library.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// A result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as a class that a program can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The broker cannot be reached, or the connection broke.
    Connection,
    /// No answer came before the deadline.
    Timeout,
    /// The address does not exist.
    NotFound,
    /// Something exists and differs from what was asked for.
    Conflict,
    /// The broker refused the credentials or the right to do this.
    Unauthorized,
    /// The message or a part of it is over a limit.
    TooLarge,
    /// An argument is not acceptable.
    InvalidInput,
    /// The configuration is not acceptable.
    InvalidConfig,
    /// This broker, or this address on it, cannot do what was asked.
    Unsupported,
    /// The broker took the message and found no queue for it.
    Unroutable,
    /// The broker refused the message.
    Rejected,
    /// The message is no longer this receiver's to answer.
    LeaseLost,
    /// Whoever was asked answered with an error of their own, which is the message.
    Remote,
    /// The broker asks to slow down.
    Throttled,
    /// Bytes could not be encoded or decoded.
    Codec,
    /// The handle was closed.
    Closed,
    /// A defect of the library or of the broker's client.
    Internal,
}

impl ErrorKind {
    fn is_retryable(self) -> bool {
        matches!(self, Self::Connection | Self::Timeout | Self::Throttled)
    }
}

/// What a failed send means for the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The broker does not have the message.
    NotSent,
    /// The broker may or may not have the message.
    Unknown,
    /// The broker saw the message and refused it.
    Rejected,
}

/// An error of the library: a kind, what it means for a sent message, and where it happened.
///
/// One pointer wide and cheap to clone, so that one lost connection can answer a thousand callers. `Display` prints
/// one line of this error's own level and never a secret; causes are reached through
/// [`source`](StdError::source).
///
/// ```
/// use queue_core::{Error, ErrorKind, Outcome};
///
/// let error = Error::new(ErrorKind::Timeout, "no confirmation")
///     .with_operation("send")
///     .with_outcome(Outcome::Unknown)
///     .with_context("address", "orders");
/// assert!(error.is_retryable());
/// assert_eq!(error.to_string(), "send: no confirmation (address: orders)");
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    outcome: Outcome,
    retryable: bool,
    operation: &'static str,
    message: Cow<'static, str>,
    context: Vec<(&'static str, String)>,
    source: Option<Arc<dyn StdError + Send + Sync + 'static>>,
}

impl Error {
    /// Makes an error of `kind`. Retryable and outcome start with what the kind implies: `Connection`, `Timeout` and
    /// `Throttled` are retryable; `Rejected` and `Unroutable` are [`Outcome::Rejected`], all else
    /// [`Outcome::NotSent`].
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        let outcome = match kind {
            ErrorKind::Rejected | ErrorKind::Unroutable => Outcome::Rejected,
            _ => Outcome::NotSent,
        };
        Self(Arc::new(Inner {
            kind,
            outcome,
            retryable: kind.is_retryable(),
            operation: "",
            message: message.into(),
            context: Vec::new(),
            source: None,
        }))
    }

    /// The error of a closed handle.
    #[must_use]
    pub fn closed(what: &'static str) -> Self {
        Self::new(ErrorKind::Closed, format!("the {what} is closed"))
    }

    /// The error of an operation that the broker cannot do.
    #[must_use]
    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Unsupported, message)
    }

    /// Says which operation failed.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        Arc::make_mut(&mut self.0).operation = operation;
        self
    }

    /// Says what the failure means for the message.
    #[must_use]
    pub fn with_outcome(mut self, outcome: Outcome) -> Self {
        Arc::make_mut(&mut self.0).outcome = outcome;
        self
    }

    /// Says whether the same call can succeed later.
    #[must_use]
    pub fn with_retryable(mut self, retryable: bool) -> Self {
        Arc::make_mut(&mut self.0).retryable = retryable;
        self
    }

    /// Adds a key and a value, such as the address or the limit. Never pass a secret.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        let inner = Arc::make_mut(&mut self.0);
        if !inner.context.iter().any(|(k, _)| *k == key) {
            inner.context.push((key, value.to_string()));
        }
        self
    }

    /// Sets the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::from(source.into()));
        self
    }

    /// The class of the error.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whether the same call can succeed later.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.retryable
    }

    /// What the failure means for the message that was sent.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.0.outcome
    }

    /// The operation that failed; empty where none was named.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// What was wrong, without operation and context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The value that was recorded under `key`.
    #[must_use]
    pub fn context(&self, key: &str) -> Option<&str> {
        self.0.context.iter().find(|(k, _)| *k == key).map(|(_, v)| v.as_str())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.operation.is_empty() {
            write!(f, "{}: ", self.0.operation)?;
        }
        f.write_str(&self.0.message)?;
        for (i, (key, value)) in self.0.context.iter().enumerate() {
            write!(f, "{}{key}: {value}", if i == 0 { " (" } else { ", " })?;
        }
        if self.0.context.is_empty() { Ok(()) } else { f.write_str(")") }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut s = f.debug_struct("Error");
        s.field("kind", &self.0.kind).field("outcome", &self.0.outcome);
        if !self.0.operation.is_empty() {
            s.field("operation", &self.0.operation);
        }
        s.field("message", &self.0.message);
        for (key, value) in &self.0.context {
            s.field(key, value);
        }
        if let Some(source) = &self.0.source {
            s.field("source", source);
        }
        s.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_pointer_wide_and_shareable() {
        fn shareable<T: Send + Sync + Clone + 'static>() {}
        shareable::<Error>();
        assert_eq!(std::mem::size_of::<Error>(), 8);
        assert_eq!(std::mem::size_of::<Result<()>>(), 8);
    }

    #[test]
    fn display_prints_its_own_level_only() {
        let error = Error::new(ErrorKind::Connection, "cannot reach the broker")
            .with_context("host", "localhost:5672")
            .with_source(std::io::Error::other("inner"));
        assert_eq!(error.to_string(), "cannot reach the broker (host: localhost:5672)");
        assert_eq!(error.source().unwrap().to_string(), "inner");
    }
}
