//! Native errors as errors of the library.

#[cfg(feature = "msk-iam")]
use aws_credential_types::provider::error::CredentialsError;
use queue_core::{Error, ErrorKind, Outcome};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// How OpenSSL says that a certificate of a broker is not good.
const NOT_TRUSTED: &[&str] = &["certificate verify failed", "Failed to verify broker certificate"];
/// How a broker says that about one of ours. An alert comes from the other side.
const CERTIFICATE_REFUSED: &[&str] = &[
    "alert certificate required",
    "alert bad certificate",
    "alert certificate unknown",
    "alert certificate expired",
    "alert certificate revoked",
    "alert unsupported certificate",
    "alert unknown ca",
];
/// How librdkafka says that an option needs OpenSSL, which it was built without.
const NO_OPENSSL: &[&str] = &["OpenSSL", "not available at build time"];

/// The class of a native code.
fn kind_of(code: Code) -> ErrorKind {
    match code {
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::LeaderNotAvailable
        | Code::NotLeaderForPartition
        | Code::CoordinatorNotAvailable
        | Code::CoordinatorLoadInProgress
        | Code::NotCoordinator
        | Code::NotController
        | Code::NotEnoughReplicas
        | Code::NotEnoughReplicasAfterAppend
        | Code::KafkaStorageError
        | Code::WaitingForCoordinator
        | Code::SSL
        | Code::ConcurrentTransactions
        | Code::UnstableOffsetCommit
        | Code::DestroyBroker
        | Code::Fatal => ErrorKind::Connection,
        Code::OperationTimedOut | Code::MessageTimedOut | Code::RequestTimedOut | Code::TimedOutQueue => {
            ErrorKind::Timeout
        }
        Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => ErrorKind::NotFound,
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::Authentication => ErrorKind::Unauthorized,
        Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::MessageBatchTooLarge
        | Code::OffsetMetadataTooLarge => ErrorKind::TooLarge,
        Code::InvalidMessage
        | Code::InvalidRecord
        | Code::InvalidDifferentRecord
        | Code::InvalidTimestamp
        | Code::PolicyViolation
        | Code::UnsupportedForMessageFormat => ErrorKind::Rejected,
        Code::InvalidTopic
        | Code::InvalidGroupId
        | Code::InvalidPartitions
        | Code::InvalidReplicationFactor
        | Code::InvalidConfig
        | Code::InvalidRequest
        | Code::InvalidArgument => ErrorKind::InvalidInput,
        Code::Fenced
        | Code::ProducerFenced
        | Code::InvalidProducerEpoch
        | Code::TopicAlreadyExists
        | Code::FencedInstanceId
        | Code::UnreleasedInstanceId
        | Code::InconsistentGroupProtocol => ErrorKind::Conflict,
        Code::InvalidTransactionTimeout => ErrorKind::InvalidConfig,
        Code::QueueFull | Code::ThrottlingQuotaExceeded => ErrorKind::Throttled,
        Code::PurgeQueue | Code::PurgeInflight => ErrorKind::Closed,
        Code::UnknownMemberId
        | Code::IllegalGeneration
        | Code::RebalanceInProgress
        | Code::AssignmentLost
        | Code::StaleMemberEpoch
        | Code::FencedMemberEpoch => ErrorKind::LeaseLost,
        Code::UnsupportedFeature | Code::UnsupportedVersion => ErrorKind::Unsupported,
        _ => ErrorKind::Internal,
    }
}

/// Whether it is about the login as a whole.
pub(crate) fn is_login(code: Code) -> bool {
    matches!(code, Code::Authentication | Code::SaslAuthenticationFailed)
}

/// What a broker says that will not be different when it is asked again: the error of a login or of TLS; `None` for what
/// may pass. `reason` is librdkafka's, and shows in the error.
pub(crate) fn of_refusal(code: Code, reason: &str) -> Option<Error> {
    let says = |texts: &[&str]| texts.iter().any(|t| reason.contains(t));
    let (kind, message) = if is_login(code) {
        (ErrorKind::Unauthorized, "the login is refused")
    } else if says(NOT_TRUSTED) {
        (ErrorKind::Connection, "the broker is not trusted")
    } else if says(CERTIFICATE_REFUSED) {
        (ErrorKind::Unauthorized, "the broker refuses the client certificate, or wants one")
    } else if code == Code::SSL {
        (ErrorKind::Connection, "TLS cannot be set up")
    } else {
        return None;
    };
    Some(Error::new(kind, message).with_operation("connect").with_retryable(false).with_context("reason", reason))
}

/// The error of a native code.
pub(crate) fn of_code(code: Code, operation: &'static str) -> Error {
    Error::new(kind_of(code), code.to_string()).with_operation(operation)
}

/// The error of a native error that is not about configuration.
pub(crate) fn of(error: KafkaError, operation: &'static str) -> Error {
    match error.rdkafka_error_code() {
        Some(code) => of_code(code, operation).with_source(error),
        None => match error {
            KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => of_config(&error),
            KafkaError::AdminOpCreation(_) | KafkaError::Nul(_) => {
                Error::new(ErrorKind::InvalidInput, "the client refuses the request")
                    .with_operation(operation)
                    .with_source(error)
            }
            other => Error::new(ErrorKind::Internal, "the client failed").with_operation(operation).with_source(other),
        },
    }
}

/// The error of a configuration that the client refuses. Names the option, never its value: it may be a secret.
pub(crate) fn of_config(error: &KafkaError) -> Error {
    let error = match error {
        KafkaError::ClientConfig(_, reason, key, _) => {
            let message = if reason.starts_with("No such configuration property") {
                format!("librdkafka has no option `{key}`")
            } else if !cfg!(feature = "tls") && NO_OPENSSL.iter().all(|part| reason.contains(part)) {
                format!("the option `{key}` needs the feature `tls` (`kafka-tls` of the facade)")
            } else {
                format!("librdkafka refuses the value of `{key}`")
            };
            Error::new(ErrorKind::InvalidConfig, message).with_context("option", key)
        }
        // What does not fit together: names of options, limits, a feature that is not built in.
        KafkaError::ClientCreation(reason) => {
            Error::new(ErrorKind::InvalidConfig, "librdkafka refuses the configuration").with_context("reason", reason)
        }
        _ => Error::new(ErrorKind::InvalidConfig, "librdkafka refuses the configuration"),
    };
    error.with_operation("configure")
}

/// What AWS's services say of an identity that they refuse, as part of their error codes.
#[cfg(feature = "msk-iam")]
const REFUSALS: [&str; 7] = [
    "AccessDenied",
    "ExpiredToken",
    "InvalidClientTokenId",
    "InvalidIdentityToken",
    "SignatureDoesNotMatch",
    "UnauthorizedException",
    "UnrecognizedClient",
];

/// The error of AWS credentials that could not be had. The SDK's own error is no source: its `Debug` may show what a
/// token server answered.
#[cfg(feature = "msk-iam")]
pub(crate) fn of_credentials(error: &CredentialsError) -> Error {
    // Each in one line.
    let causes: Vec<_> = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source())
        .map(|error| error.to_string().split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let is_refused = causes.iter().any(|cause| REFUSALS.iter().any(|code| cause.contains(code)));
    let (kind, message) = match error {
        CredentialsError::CredentialsNotLoaded(_) => (ErrorKind::Unauthorized, "there are no AWS credentials"),
        CredentialsError::InvalidConfiguration(_) => (ErrorKind::InvalidConfig, "the AWS configuration is not valid"),
        CredentialsError::ProviderTimedOut(_) => (ErrorKind::Timeout, "no AWS credentials came in time"),
        _ if is_refused => (ErrorKind::Unauthorized, "AWS refuses the identity"),
        _ => (ErrorKind::Connection, "the AWS credentials could not be fetched"),
    };
    let mut told = Error::new(kind, message).with_operation("connect");
    if matches!(error, CredentialsError::CredentialsNotLoaded(_)) {
        let advice = "give `profile`, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
        told = told.with_context("advice", advice);
    }
    match causes.last() {
        Some(cause) => told.with_context("cause", cause),
        None => told,
    }
}

/// The verdict of a message whose delivery failed.
///
/// Only what cannot have been stored is `NotSent` or `Rejected`: librdkafka sends again by itself, so that behind a
/// timeout there may be a request whose answer was lost.
pub(crate) fn of_delivery(code: Code) -> Error {
    let error = of_code(code, "send");
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::InvalidInput => error,
        ErrorKind::Rejected if code == Code::InvalidDifferentRecord => {
            error.with_outcome(Outcome::NotSent).with_retryable(true)
        }
        ErrorKind::TooLarge | ErrorKind::Unauthorized | ErrorKind::Rejected => error.with_outcome(Outcome::Rejected),
        _ => error.with_outcome(Outcome::Unknown),
    }
}

/// The verdict of a message that the client did not take: it was never sent.
pub(crate) fn of_enqueue(error: KafkaError) -> Error {
    of(error, "send").with_outcome(Outcome::NotSent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_timed_out_may_have_been_sent() {
        let error = of_delivery(Code::MessageTimedOut);
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert_eq!(of_delivery(Code::Fatal).outcome(), Outcome::Unknown);
        assert_eq!(of_delivery(Code::NotEnoughReplicas).outcome(), Outcome::Unknown);
    }

    #[test]
    fn a_message_that_the_broker_refused_is_rejected() {
        let error = of_delivery(Code::MessageSizeTooLarge);
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Outcome::Rejected));
        assert_eq!(of_delivery(Code::UnknownTopic).kind(), ErrorKind::NotFound);
    }

    #[test]
    fn an_error_of_configuration_names_the_option_and_not_its_value() {
        let mut config = rdkafka::ClientConfig::new();
        config.set("linger.ms", "hunter2");
        let Err(native) = config.create_native_config() else { panic!("a text is no number") };
        let error = of_config(&native);
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some("linger.ms")));
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn a_refusal_is_told_from_a_connection_that_failed() {
        let kind = |code, reason| of_refusal(code, reason).map(|e| (e.kind(), e.is_retryable()));
        assert_eq!(kind(Code::Authentication, "no"), Some((ErrorKind::Unauthorized, false)));
        let alert = "error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116";
        assert_eq!(kind(Code::BrokerTransportFailure, alert), Some((ErrorKind::Unauthorized, false)));
        let distrust = "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed";
        assert_eq!(kind(Code::SSL, distrust), Some((ErrorKind::Connection, false)));
        assert_eq!(kind(Code::BrokerTransportFailure, "Connection refused"), None);
        assert_eq!(kind(Code::AllBrokersDown, "1/1 brokers are down"), None);
    }
}
