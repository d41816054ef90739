//! What a handler answers when it fails.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

/// Any error.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What becomes of a message whose handler failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureKind {
    /// It is tried again after the backoff, counted as an attempt; after the last attempt it is a dead letter.
    Temporary,
    /// As temporary, after this delay at the earliest.
    RetryAfter(Duration),
    /// It is a dead letter at once: no attempt will succeed.
    Permanent,
    /// What the handler needs is away, which is not the message's fault: it is tried again in a second, not counted as an
    /// attempt; if there is a [`Breaker`](crate::Breaker) it opens, and the message is tried again after its pause.
    Unavailable,
}

impl FailureKind {
    /// As `error.type` of spans and metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Temporary => "temporary",
            Self::RetryAfter(_) => "retry_after",
            Self::Permanent => "permanent",
            Self::Unavailable => "unavailable",
        }
    }
}

/// Why a handler failed, and what becomes of its message.
///
/// Every error is one by `?`, and temporary unless it is said otherwise:
///
/// ```
/// use queue_worker::{Failure, OrFail};
/// # #[derive(Debug, PartialEq)] struct Order(u32);
///
/// fn order(text: &str) -> Result<Order, Failure> {
///     let number = text.parse().or_permanent()?; // it will never be a number
///     std::fs::read_dir("/")?; // comes back
///     Ok(Order(number))
/// }
/// assert_eq!(order("7").unwrap(), Order(7));
/// ```
pub struct Failure {
    kind: FailureKind,
    error: BoxError,
}

impl Failure {
    /// The message is tried again after the backoff.
    pub fn temporary(error: impl Into<BoxError>) -> Self {
        Self { kind: FailureKind::Temporary, error: error.into() }
    }

    /// The message is tried again after this delay at the earliest.
    pub fn retry_after(delay: Duration, error: impl Into<BoxError>) -> Self {
        Self { kind: FailureKind::RetryAfter(delay), error: error.into() }
    }

    /// The message goes to the dead letters, with this error and its causes.
    pub fn permanent(error: impl Into<BoxError>) -> Self {
        Self { kind: FailureKind::Permanent, error: error.into() }
    }

    /// What the handler needs is away: the message is tried again later, not counted as an attempt.
    pub fn unavailable(error: impl Into<BoxError>) -> Self {
        Self { kind: FailureKind::Unavailable, error: error.into() }
    }

    pub(crate) fn of(kind: FailureKind, error: impl Into<BoxError>) -> Self {
        Self { kind, error: error.into() }
    }

    /// What becomes of the message.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        self.kind
    }

    /// Why.
    #[must_use]
    pub fn error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        &*self.error
    }

    /// The error alone.
    #[must_use]
    pub fn into_error(self) -> BoxError {
        self.error
    }

    /// What came out of a service: its own failure, perhaps in an error that a layer put around it, or another error, which
    /// is temporary.
    pub(crate) fn from_service(error: BoxError) -> Self {
        let error = match error.downcast::<Marked>() {
            Ok(marked) => return marked.0,
            Err(error) => error,
        };
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(marked) = inner.downcast_ref::<Marked>() {
                return Self { kind: marked.0.kind, error };
            }
            cause = inner.source();
        }
        Self::temporary(error)
    }

    pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> Self {
        let text: Cow<'_, str> = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
            (Some(text), _) => Cow::Borrowed(text),
            (None, Some(text)) => Cow::Borrowed(text),
            (None, None) => Cow::Borrowed("with something that is no text"),
        };
        Self::temporary(Panicked(text.into_owned()))
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure").field("kind", &self.kind).field("error", &self.error).finish()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<E: StdError + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::temporary(error)
    }
}

/// What a panic said.
#[derive(Debug)]
pub(crate) struct Panicked(String);

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the handler panicked: {}", self.0)
    }
}

impl StdError for Panicked {}

/// A failure on its way through the services of tower, which know boxed errors only.
#[derive(Debug)]
struct Marked(Failure);

impl fmt::Display for Marked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Marked {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.error.source()
    }
}

impl From<Failure> for BoxError {
    fn from(failure: Failure) -> Self {
        Box::new(Marked(failure))
    }
}

/// Says of the error of a result what becomes of the message.
pub trait OrFail<T> {
    /// The error is permanent: the message goes to the dead letters.
    ///
    /// # Errors
    /// The error, as a permanent failure.
    fn or_permanent(self) -> Result<T, Failure>;

    /// The message is tried again after this delay at the earliest.
    ///
    /// # Errors
    /// The error, as a temporary failure with a delay.
    fn or_retry_after(self, delay: Duration) -> Result<T, Failure>;

    /// What the handler needs is away, which is not the message's fault.
    ///
    /// # Errors
    /// The error, as [`Failure::unavailable`].
    fn or_unavailable(self) -> Result<T, Failure>;
}

impl<T, E: Into<BoxError>> OrFail<T> for Result<T, E> {
    fn or_permanent(self) -> Result<T, Failure> {
        self.map_err(Failure::permanent)
    }

    fn or_retry_after(self, delay: Duration) -> Result<T, Failure> {
        self.map_err(|error| Failure::retry_after(delay, error))
    }

    fn or_unavailable(self) -> Result<T, Failure> {
        self.map_err(Failure::unavailable)
    }
}
