//! Native errors as errors of the library.

use queue_core::{Error, ErrorKind, Outcome};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

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
        | Code::DestroyBroker
        | Code::Fatal => ErrorKind::Connection,
        Code::OperationTimedOut | Code::MessageTimedOut | Code::RequestTimedOut | Code::TimedOutQueue => {
            ErrorKind::Timeout
        }
        Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition => ErrorKind::NotFound,
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::SaslAuthenticationFailed
        | Code::Authentication => ErrorKind::Unauthorized,
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => ErrorKind::TooLarge,
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
        Code::TopicAlreadyExists | Code::FencedInstanceId | Code::InconsistentGroupProtocol => ErrorKind::Conflict,
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
}
