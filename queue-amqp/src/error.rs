//! Errors of the client and the server, mapped to the library's own.

use std::future::Future;
use std::io;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use queue_core::{Error, ErrorKind, Result};
use rustls::AlertDescription;
use tokio::time::{Instant, timeout_at};

/// Maps an error of the client.
pub(crate) fn map(error: &lapin::Error, operation: &'static str) -> Error {
    if let lapin::ErrorKind::IOError(io) = error.kind()
        && let Some(tls) = tls_error(io)
    {
        return map_tls(tls, operation);
    }
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

/// Maps an error of the network.
pub(crate) fn map_io(error: &io::Error, operation: &'static str) -> Error {
    match tls_error(error) {
        Some(tls) => map_tls(tls, operation),
        None => Error::new(ErrorKind::Connection, error.to_string()).with_operation(operation),
    }
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

/// Maps an error of TLS; none of them goes away by trying again.
fn map_tls(error: &rustls::Error, operation: &'static str) -> Error {
    use AlertDescription as Alert;
    let (kind, message) = match error {
        rustls::Error::AlertReceived(
            alert @ (Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::CertificateRequired),
        ) => (ErrorKind::Unauthorized, format!("the server refused the client certificate: {alert:?}")),
        rustls::Error::InvalidCertificate(why) => {
            (ErrorKind::Connection, format!("the server's certificate is not trusted: {why}"))
        }
        rustls::Error::InvalidMessage(_) => {
            (ErrorKind::Connection, "the server does not speak TLS on this port; without TLS the scheme is amqp".into())
        }
        other => (ErrorKind::Connection, format!("TLS: {other}")),
    };
    Error::new(kind, message).with_retryable(false).with_operation(operation).with_source(error.clone())
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
            // Its plugin is not enabled; earlier servers close the connection for it.
            AMQPSoftError::PRECONDITIONFAILED if text.contains("unknown exchange type") => ErrorKind::Unsupported,
            // An argument that this type of queue does not take, or that nothing takes.
            AMQPSoftError::PRECONDITIONFAILED if text.contains("of queue type") => ErrorKind::Unsupported,
            AMQPSoftError::PRECONDITIONFAILED if text.contains("invalid arg") => ErrorKind::InvalidInput,
            // Of a consistent-hash exchange, whose keys are shares.
            AMQPSoftError::PRECONDITIONFAILED if text.contains("binding key") => ErrorKind::InvalidInput,
            AMQPSoftError::RESOURCELOCKED | AMQPSoftError::PRECONDITIONFAILED => ErrorKind::Conflict,
            AMQPSoftError::CONTENTTOOLARGE => ErrorKind::TooLarge,
            AMQPSoftError::NOROUTE | AMQPSoftError::NOCONSUMERS => ErrorKind::Unroutable,
        },
        AMQPErrorKind::Hard(hard) => match hard {
            AMQPHardError::INVALIDPATH => ErrorKind::NotFound,
            // A limit on connections, of the user or the virtual host.
            AMQPHardError::NOTALLOWED if text.contains("limit") => ErrorKind::Throttled,
            AMQPHardError::NOTALLOWED if text.contains("not found") => ErrorKind::NotFound,
            AMQPHardError::NOTALLOWED => ErrorKind::Unauthorized,
            AMQPHardError::NOTIMPLEMENTED => ErrorKind::Unsupported,
            // Its plugin is not enabled.
            AMQPHardError::COMMANDINVALID if text.contains("exchange type") => ErrorKind::Unsupported,
            // Everybody on the connection hears of it, whoever was the reason, and another connection may do.
            AMQPHardError::CONNECTIONFORCED
            | AMQPHardError::INTERNALERROR
            | AMQPHardError::RESOURCEERROR
            | AMQPHardError::CHANNELERROR
            | AMQPHardError::FRAMEERROR
            | AMQPHardError::UNEXPECTEDFRAME => ErrorKind::Connection,
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
