//! Errors of the client and the server, mapped to the library's own.

use std::future::Future;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use queue_core::{Error, ErrorKind, Result};
use tokio::time::{Instant, timeout_at};

/// Maps an error of the client.
pub(crate) fn map(error: &lapin::Error, operation: &'static str) -> Error {
    let (kind, message) = match error.kind() {
        lapin::ErrorKind::ProtocolError(refusal) => {
            let text = refusal.get_message().to_string();
            (kind_of_refusal(refusal.kind(), &text), text)
        }
        lapin::ErrorKind::IOError(_)
        | lapin::ErrorKind::RuntimeShutdownError(_)
        | lapin::ErrorKind::MissingHeartbeatError
        | lapin::ErrorKind::ChannelsLimitReached
        | lapin::ErrorKind::InvalidChannel(_)
        | lapin::ErrorKind::InvalidChannelState(..)
        | lapin::ErrorKind::InvalidConnectionState(_) => (ErrorKind::Connection, error.to_string()),
        _ => (ErrorKind::Internal, error.to_string()),
    };
    Error::new(kind, message).with_operation(operation).with_source(error.clone())
}

fn kind_of_refusal(kind: &AMQPErrorKind, text: &str) -> ErrorKind {
    match kind {
        AMQPErrorKind::Soft(soft) => match soft {
            AMQPSoftError::ACCESSREFUSED => ErrorKind::Unauthorized,
            // The queue exists; its node does not answer now.
            AMQPSoftError::NOTFOUND if text.contains("inaccessible") || text.contains("process is stopped") => {
                ErrorKind::Connection
            }
            AMQPSoftError::NOTFOUND => ErrorKind::NotFound,
            AMQPSoftError::PRECONDITIONFAILED if text.contains("message size") => ErrorKind::TooLarge,
            // An argument that this type of queue does not take, or that nothing takes.
            AMQPSoftError::PRECONDITIONFAILED if text.contains("of queue type") => ErrorKind::Unsupported,
            AMQPSoftError::PRECONDITIONFAILED if text.contains("invalid arg") => ErrorKind::InvalidInput,
            AMQPSoftError::RESOURCELOCKED | AMQPSoftError::PRECONDITIONFAILED => ErrorKind::Conflict,
            AMQPSoftError::CONTENTTOOLARGE => ErrorKind::TooLarge,
            AMQPSoftError::NOROUTE | AMQPSoftError::NOCONSUMERS => ErrorKind::Unroutable,
        },
        AMQPErrorKind::Hard(hard) => match hard {
            AMQPHardError::INVALIDPATH => ErrorKind::NotFound,
            AMQPHardError::NOTALLOWED if text.contains("not found") => ErrorKind::NotFound,
            AMQPHardError::NOTALLOWED => ErrorKind::Unauthorized,
            AMQPHardError::NOTIMPLEMENTED => ErrorKind::Unsupported,
            // Its plugin is not enabled.
            AMQPHardError::COMMANDINVALID if text.contains("exchange type") => ErrorKind::Unsupported,
            AMQPHardError::CONNECTIONFORCED | AMQPHardError::INTERNALERROR | AMQPHardError::RESOURCEERROR => {
                ErrorKind::Connection
            }
            _ => ErrorKind::Internal,
        },
    }
}

/// Whether waiting and trying again cannot help.
pub(crate) fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unauthorized | ErrorKind::Conflict | ErrorKind::Unsupported)
}

/// The error of something that needs a connection while there is none.
pub(crate) fn not_connected() -> Error {
    Error::new(ErrorKind::Connection, "not connected to the broker")
}

/// Waits for an answer of the broker until the deadline.
pub(crate) async fn within<T>(
    deadline: Instant,
    operation: &'static str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T> {
    match timeout_at(deadline, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(map(&error, operation)),
        Err(_) => Err(Error::new(ErrorKind::Timeout, "the broker did not answer in time").with_operation(operation)),
    }
}
