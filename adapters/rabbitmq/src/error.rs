//! What the client and the broker say, in postrider's words: by kind and code, never by text.

use lapin::ErrorKind as Amqp;
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use postrider_core::{Error, ErrorKind};

/// A failure of an operation, with what the broker said about it.
pub(crate) fn of(operation: &'static str, error: lapin::Error) -> Error {
    let (kind, message) = match error.kind() {
        Amqp::ProtocolError(e) => match e.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
                (ErrorKind::NotFound, "the broker has no such exchange or queue")
            }
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => {
                (ErrorKind::Unauthorized, "the broker refuses; check the user's permissions")
            }
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => (
                ErrorKind::Unauthorized,
                "the broker refuses; check the virtual host and the user's rights to it",
            ),
            AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => {
                (ErrorKind::Mismatch, "what is at the broker differs")
            }
            AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => {
                (ErrorKind::Mismatch, "the queue belongs to another connection alone")
            }
            // closed by an operator, shut down, out of something: it may be back soon
            AMQPErrorKind::Hard(
                AMQPHardError::CONNECTIONFORCED | AMQPHardError::INTERNALERROR | AMQPHardError::RESOURCEERROR,
            ) => (ErrorKind::Connection, "the broker closed the connection"),
            _ => (ErrorKind::Broker, "the broker refuses"),
        },
        Amqp::ChannelsLimitReached => (
            ErrorKind::Broker,
            "the connection has no free channel; use fewer partitions, or raise the broker's `channel_max`",
        ),
        _ => (ErrorKind::Connection, "the connection to the broker was lost"),
    };
    Error::new(kind, operation, message).because(error)
}

/// Why no connection was made to `address`.
pub(crate) fn connect(error: lapin::Error, address: &str) -> Error {
    let (kind, message) = match error.kind() {
        Amqp::ProtocolError(e) => match e.kind() {
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => (
                ErrorKind::Unauthorized,
                "the broker refuses the credentials; check user and password (`guest` may connect from localhost only)",
            ),
            AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => (
                ErrorKind::Unauthorized,
                "the broker refuses the virtual host; check that it exists and that the user may use it",
            ),
            _ => (ErrorKind::Connection, "the broker closed the connection while it was being made"),
        },
        Amqp::IOError(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            (ErrorKind::Connection, "no TLS connection could be made; check `tls_ca` and the host's name")
        }
        // so it answers a way of proving who one is that it doesn't take
        Amqp::IOError(e) if e.kind() == std::io::ErrorKind::ConnectionAborted => (
            ErrorKind::Connection,
            "the broker ended the connection while it was being made; check that it takes user and password, or `external`, whichever is used",
        ),
        _ => (ErrorKind::Connection, "no connection could be made; is a broker running there?"),
    };
    Error::new(kind, "connect", message).with("address", address).because(error)
}

/// Whether the broker said that an exchange or queue isn't there.
pub(crate) fn is_not_found(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::NOTFOUND)
}

/// Whether the broker said that the user may not do this.
pub(crate) fn is_refused(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::ACCESSREFUSED)
}

/// Whether the broker said that something is there with other arguments.
pub(crate) fn is_mismatch(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::PRECONDITIONFAILED)
}

fn is_soft(error: &lapin::Error, wanted: &AMQPSoftError) -> bool {
    matches!(error.kind(), Amqp::ProtocolError(e) if matches!(e.kind(), AMQPErrorKind::Soft(code) if code == wanted))
}

#[cfg(test)]
mod tests {
    use lapin::protocol::AMQPError;

    use super::*;

    fn soft(code: AMQPSoftError) -> lapin::Error {
        Amqp::ProtocolError(AMQPError::new(code.into(), "said".into())).into()
    }

    #[test]
    fn codes_become_kinds() {
        assert_eq!(of("declare", soft(AMQPSoftError::PRECONDITIONFAILED)).kind(), ErrorKind::Mismatch);
        assert_eq!(of("declare", soft(AMQPSoftError::NOTFOUND)).kind(), ErrorKind::NotFound);
        assert_eq!(connect(soft(AMQPSoftError::ACCESSREFUSED), "h:1").kind(), ErrorKind::Unauthorized);
        assert!(is_not_found(&soft(AMQPSoftError::NOTFOUND)) && !is_mismatch(&soft(AMQPSoftError::NOTFOUND)));
        let lost: lapin::Error = Amqp::MissingHeartbeatError.into();
        assert!(of("publish", lost).is_temporary());
    }
}
