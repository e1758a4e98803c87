//! What the client and the broker say, in postrider's words: by code, never by text.

use postrider_core::{Error, ErrorKind, PublishError};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

/// The kind of a code, and what to do about it.
fn kind(code: Code) -> (ErrorKind, &'static str) {
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => (
            ErrorKind::NotFound,
            "there is no such topic; start the router that reads it first, or declare it: `broker.declare(…)`",
        ),
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            (ErrorKind::TooLarge, "the message is larger than the topic takes (`max.message.bytes`)")
        }
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => {
            (ErrorKind::Unauthorized, "the broker doesn't permit it; check the user's access rules")
        }
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState => (
            ErrorKind::Unauthorized,
            "the broker refuses the credentials; check user, password and `sasl_mechanism`",
        ),
        Code::MessageTimedOut
        | Code::OperationTimedOut
        | Code::RequestTimedOut
        | Code::TimedOutQueue
        | Code::WaitCache => (ErrorKind::Timeout, "the broker didn't answer in time"),
        Code::BrokerTransportFailure
        | Code::AllBrokersDown
        | Code::Resolve
        | Code::SSL
        | Code::NetworkException
        | Code::BrokerNotAvailable
        | Code::WaitingForCoordinator
        | Code::CoordinatorNotAvailable
        | Code::CoordinatorLoadInProgress
        | Code::NotCoordinator => (ErrorKind::Connection, "the broker can't be reached"),
        Code::LeaderNotAvailable | Code::NotLeaderForPartition => {
            (ErrorKind::Connection, "the partition's leader isn't known at this moment; try again")
        }
        Code::InvalidRecord => (
            ErrorKind::Mismatch,
            "the broker refuses the message for what it is; a compacted topic needs a key",
        ),
        Code::InvalidDifferentRecord => (
            ErrorKind::Broker,
            "the broker refuses a message that was sent in the same batch; publish this one again",
        ),
        Code::InvalidSessionTimeout => (
            ErrorKind::Mismatch,
            "the broker doesn't allow this `claim_timeout`; keep within its `group.min.session.timeout.ms` and `group.max.session.timeout.ms`",
        ),
        Code::InconsistentGroupProtocol => (
            ErrorKind::Mismatch,
            "the group has members that share partitions by another protocol; stop those first, or choose another group",
        ),
        Code::UnsupportedVersion | Code::UnsupportedFeature => {
            (ErrorKind::Unsupported, "the broker is too old for this")
        }
        _ => (ErrorKind::Broker, "the broker refuses"),
    }
}

/// A code as an error.
pub(crate) fn code(operation: &'static str, code: Code) -> Error {
    let (kind, message) = kind(code);
    Error::new(kind, operation, message).with("code", format!("{code:?}"))
}

/// Any error of the client.
pub(crate) fn client(operation: &'static str, error: KafkaError) -> Error {
    match error.rdkafka_error_code() {
        Some(known) => code(operation, known).because(error),
        None => Error::new(ErrorKind::Broker, operation, "the client can't do it").because(error),
    }
}

/// Whether it is because the leader of a partition that is there isn't known at this moment: it is new, or moves. Of such a one the client
/// may say that there is no such partition.
pub(crate) fn is_leaderless(error: &Error) -> bool {
    matches!(
        code_of(error),
        Some(
            Code::LeaderNotAvailable
                | Code::NotLeaderForPartition
                | Code::UnknownPartition
                | Code::UnknownTopicOrPartition
                | Code::OffsetNotAvailable
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::KafkaStorageError
        )
    )
}

/// The code of what the client said, where that is what it comes from.
pub(crate) fn code_of(error: &Error) -> Option<Code> {
    std::error::Error::source(error)?.downcast_ref::<KafkaError>()?.rdkafka_error_code()
}

/// A client that can't be made: a property is wrong. The value isn't repeated, since it may be a secret.
pub(crate) fn creation(error: KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(_, why, name, _) => {
            let message = format!("librdkafka refuses a property: {why}");
            Error::config("connect", message).with("property", name)
        }
        other => Error::config("connect", "librdkafka can't be set up like this").because(other),
    }
}

/// What became of a message that was handed to the client and isn't confirmed.
pub(crate) fn delivery(found: Code) -> PublishError {
    let error = code("publish", found);
    match found {
        // never sent, or refused by the broker for what it is
        Code::UnknownTopicOrPartition
        | Code::UnknownTopic
        | Code::UnknownPartition
        | Code::MessageSizeTooLarge
        | Code::InvalidMessageSize
        | Code::MessageBatchTooLarge
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::InvalidTimestamp
        | Code::InvalidRecord
        | Code::InvalidDifferentRecord
        | Code::InvalidRequiredAcks
        | Code::InvalidTopic
        | Code::PolicyViolation
        | Code::UnsupportedForMessageFormat
        | Code::UnsupportedCompressionType
        | Code::InvalidConfig
        | Code::NotEnoughReplicas
        | Code::PurgeQueue
        | Code::QueueFull => PublishError::Failed(error),
        // whether it was sent before its time ran out, the client doesn't say
        _ => PublishError::Unknown(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_certain_has_failed() {
        assert!(!delivery(Code::UnknownTopic).is_unknown());
        assert!(!delivery(Code::MessageSizeTooLarge).is_unknown());
        // the broker checks a batch before it writes anything of it
        assert!(!delivery(Code::InvalidRecord).is_unknown());
        assert!(!delivery(Code::InvalidDifferentRecord).is_unknown());
        for code in [
            Code::MessageTimedOut,
            Code::PurgeInflight,
            Code::NotEnoughReplicasAfterAppend,
            Code::BrokerTransportFailure,
            Code::Fatal,
        ] {
            assert!(delivery(code).is_unknown(), "{code:?}");
        }
    }

    #[test]
    fn a_refused_property_is_named_without_its_value() {
        let error = rdkafka::ClientConfig::new()
            .set("no.such.property", "s3cret")
            .create::<rdkafka::producer::BaseProducer>()
            .err()
            .unwrap();
        let text = format!("{:?}", creation(error));
        assert!(text.contains("no.such.property") && !text.contains("s3cret"), "{text}");
    }
}
