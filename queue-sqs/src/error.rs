//! Errors of the SDK and of the broker, as errors of the library.
//!
//! The broker's texts quote values, header lines and signed requests: they are shown for requests about queues only,
//! never for messages or credentials, and the SDK's errors never become a source.

use std::error::Error as StdError;

use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::BatchResultErrorEntry;
use queue_core::{Error, ErrorKind, Outcome};

/// Whether the broker's own words may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Words {
    Shown,
    Hidden,
}

/// The error of a whole request.
pub(crate) fn from_sdk<E>(operation: &'static str, error: &SdkError<E>, words: Words) -> Error
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let mapped = match error {
        SdkError::TimeoutError(_) => {
            Error::new(ErrorKind::Timeout, "no answer came in time").with_outcome(Outcome::Unknown)
        }
        SdkError::ServiceError(service) => {
            let meta = service.err().meta();
            let code = meta.code().unwrap_or("unknown");
            let code = by_message(code, meta.message());
            let mapped = from_code(code, service.raw().status().as_u16());
            match meta.message() {
                Some(text) if words == Words::Shown && mapped.kind() != ErrorKind::Unauthorized => {
                    mapped.with_context("broker_says", text)
                }
                _ => mapped,
            }
        }
        SdkError::ResponseError(_) => {
            Error::new(ErrorKind::Connection, "the broker's answer could not be read").with_outcome(Outcome::Unknown)
        }
        other => before_an_answer(other),
    };
    mapped.with_operation(operation)
}

/// The request failed on its way out, as far as can be told.
fn before_an_answer(error: &(dyn StdError + 'static)) -> Error {
    let mut chain = vec![error];
    let mut last = error;
    while let Some(source) = last.source() {
        chain.push(source);
        last = source;
    }
    let texts: Vec<String> = chain.iter().map(ToString::to_string).collect();
    let any = |needle: &str| texts.iter().any(|t| t.contains(needle));
    if any("credential") || any("identity") {
        // They come over the network, too: from an instance's metadata, from STS.
        return Error::new(ErrorKind::Unauthorized, "no credentials could be loaded")
            .with_outcome(Outcome::NotSent)
            .with_retryable(true);
    }
    if any("failed to construct request") {
        return Error::new(ErrorKind::InvalidInput, "the request could not be made");
    }
    // Only a connection that never was proves that nothing was sent.
    let unsent = any("connect timeout")
        || any("dns error")
        || any("(Connect)")
        || chain.iter().any(|e| {
            e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        });
    let (message, outcome) = if unsent {
        ("the broker cannot be reached", Outcome::NotSent)
    } else {
        ("the connection to the broker broke", Outcome::Unknown)
    };
    let mapped = Error::new(ErrorKind::Connection, message).with_outcome(outcome);
    match texts.last() {
        Some(cause) => mapped.with_context("cause", cause),
        None => mapped,
    }
}

/// The error of one entry of a batch for SQS.
pub(crate) fn from_entry(operation: &'static str, entry: &BatchResultErrorEntry) -> Error {
    of_entry(operation, entry.code(), entry.message(), entry.sender_fault())
}

/// The error of one entry of a batch.
pub(crate) fn of_entry(operation: &'static str, code: &str, message: Option<&str>, sender_fault: bool) -> Error {
    let mapped = from_code(by_message(code, message), if sender_fault { 400 } else { 503 });
    mapped.with_operation(operation).with_outcome(if sender_fault { Outcome::Rejected } else { Outcome::NotSent })
}

/// The code of what the broker tells apart by its words alone.
fn by_message<'a>(code: &'a str, message: Option<&str>) -> &'a str {
    let says = |words: &str| message.is_some_and(|m| m.contains(words));
    if says("TooLong") || (code.contains("InvalidParameter") && says("Message too long")) {
        // ElasticMQ, SNS.
        "MessageTooLong"
    } else if code.contains("InvalidParameter") && says("already exists with different") {
        "AlreadyExists"
    } else if code.contains("InvalidParameterValue") && says("ReceiptHandle") {
        // A receipt that is over is an invalid parameter to Amazon.
        "ReceiptHandleIsInvalid"
    } else {
        code
    }
}

/// An entry that the answer to its batch does not name.
pub(crate) fn unmentioned(operation: &'static str) -> Error {
    Error::new(ErrorKind::Internal, "the broker's answer does not mention the entry")
        .with_operation(operation)
        .with_outcome(Outcome::Unknown)
        .with_retryable(true)
}

fn from_code(code: &str, status: u16) -> Error {
    let short = code.rsplit(['#', '.']).next().unwrap_or(code);
    let (kind, message) = match short {
        "QueueDoesNotExist" | "NonExistentQueue" => (ErrorKind::NotFound, "the queue does not exist"),
        "NotFound" | "NotFoundException" => (ErrorKind::NotFound, "the topic does not exist"),
        "AlreadyExists" => {
            (ErrorKind::Conflict, "the topic or subscription exists and differs from what was asked for")
        }
        "QueueNameExists" | "QueueAlreadyExists" => {
            (ErrorKind::Conflict, "the queue exists and differs from what was asked for")
        }
        "QueueDeletedRecently" => (ErrorKind::Conflict, "a queue of this name was deleted less than 60 s ago"),
        "AccessDenied" | "AccessDeniedException" | "AuthorizationError" | "KmsAccessDenied" | "KMSAccessDenied" => {
            (ErrorKind::Unauthorized, "the broker refused the right to do this")
        }
        "InvalidClientTokenId"
        | "InvalidAccessKeyId"
        | "UnrecognizedClientException"
        | "UnrecognizedClient"
        | "SignatureDoesNotMatch"
        | "IncompleteSignature"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "InvalidSignatureException"
        | "AuthFailure"
        | "OptInRequired"
        | "InvalidSecurity"
        | "NotAuthorized" => (ErrorKind::Unauthorized, "the broker refused the credentials"),
        "RequestThrottled"
        | "Throttling"
        | "ThrottlingException"
        | "ThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "Throttled"
        | "KmsThrottled"
        | "KMSThrottling"
        | "ConcurrentAccess"
        | "OverLimit"
        | "PurgeQueueInProgress" => (ErrorKind::Throttled, "the broker asks to slow down"),
        "MessageTooLong" | "BatchRequestTooLong" => (ErrorKind::TooLarge, "the broker takes no message of this size"),
        "ReceiptHandleIsInvalid" | "InvalidIdFormat" | "MessageNotInflight" => {
            (ErrorKind::LeaseLost, "the message is no longer this receiver's")
        }
        "UnsupportedOperation" | "InvalidAction" => (ErrorKind::Unsupported, "the broker cannot do this"),
        "InvalidMessageContents"
        | "InvalidParameter"
        | "InvalidParameterValue"
        | "ParameterValueInvalid"
        | "InvalidAttributeValue"
        | "InvalidAttributeName"
        | "InvalidParameterCombination"
        | "MissingParameter"
        | "MissingRequiredParameterException"
        | "ValidationException"
        | "InvalidAddress"
        | "InvalidBatchEntryId" => (ErrorKind::InvalidInput, "the broker refused a value"),
        _ if status >= 500 => (ErrorKind::Throttled, "the broker failed"),
        _ => (ErrorKind::Rejected, "the broker refused the request"),
    };
    let outcome = match kind {
        ErrorKind::InvalidInput | ErrorKind::TooLarge | ErrorKind::Rejected | ErrorKind::Unsupported => {
            Outcome::Rejected
        }
        // A server that failed may have stored the message before.
        _ if status >= 500 => Outcome::Unknown,
        _ => Outcome::NotSent,
    };
    Error::new(kind, message).with_outcome(outcome).with_context("code", short)
}

/// Whether the network or the endpoint failed, rather than what was asked for.
pub(crate) fn is_transport(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(code: &str, sender_fault: bool) -> Error {
        let entry = BatchResultErrorEntry::builder().id("0").code(code).sender_fault(sender_fault).build().unwrap();
        from_entry("send", &entry)
    }

    #[test]
    fn entries_say_who_is_at_fault() {
        let invalid = entry("InvalidMessageContents", true);
        assert_eq!((invalid.kind(), invalid.outcome()), (ErrorKind::InvalidInput, Outcome::Rejected));
        assert!(!invalid.is_retryable());
        let failed = entry("InternalError", false);
        assert_eq!((failed.kind(), failed.outcome()), (ErrorKind::Throttled, Outcome::NotSent));
        assert!(failed.is_retryable());
        let throttled = entry("RequestThrottled", false);
        assert_eq!((throttled.kind(), throttled.outcome()), (ErrorKind::Throttled, Outcome::NotSent));
    }

    #[test]
    fn a_receipt_that_is_over_is_a_lost_lease() {
        let told = |code: &str, message: &str| {
            let entry = BatchResultErrorEntry::builder().id("0").code(code).message(message).sender_fault(true);
            from_entry("ack", &entry.build().unwrap()).kind()
        };
        let expired = "Value AQEB for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.";
        assert_eq!(told("InvalidParameterValue", expired), ErrorKind::LeaseLost);
        assert_eq!(told("ReceiptHandleIsInvalid", "The receipt handle has expired"), ErrorKind::LeaseLost);
        let other = "Value 43201 for parameter VisibilityTimeout is invalid.";
        assert_eq!(told("InvalidParameterValue", other), ErrorKind::InvalidInput);
    }

    #[test]
    fn codes_are_read_in_every_spelling() {
        for code in
            ["AWS.SimpleQueueService.NonExistentQueue", "com.amazonaws.sqs#QueueDoesNotExist", "QueueDoesNotExist"]
        {
            assert_eq!(from_code(code, 400).kind(), ErrorKind::NotFound, "{code}");
        }
        assert_eq!(from_code("Surprise", 400).kind(), ErrorKind::Rejected);
        assert_eq!(from_code("Surprise", 500).outcome(), Outcome::Unknown);
    }
}
