//! What the client and the server say, in postrider's words: by kind, never by text.

use async_nats::jetstream::{self, ErrorCode};
use async_nats::{ConnectError, ConnectErrorKind};
use postrider_core::{Error, ErrorKind};

/// Why no connection was made to `addresses`.
pub(crate) fn connect(error: ConnectError, addresses: &str) -> Error {
    let (kind, message) = match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => (
            ErrorKind::Unauthorized,
            "the server refuses the credentials; check user, password, token, nkey or creds",
        ),
        ConnectErrorKind::TimedOut => {
            (ErrorKind::Timeout, "the server didn't answer within the connect deadline")
        }
        ConnectErrorKind::Tls => (ErrorKind::Connection, TLS),
        // a certificate that isn't taken comes as an I/O error
        ConnectErrorKind::Io if is_invalid_data(&error) => (ErrorKind::Connection, TLS),
        ConnectErrorKind::ServerParse => (ErrorKind::Config, "the address can't be read"),
        _ => (ErrorKind::Connection, "no connection could be made; is a server running there?"),
    };
    Error::new(kind, "connect", message).with("address", addresses).because(error)
}

const TLS: &str = "no TLS connection could be made; check `tls_ca` and the host's name";

/// What rustls finds wrong arrives as an I/O error of that kind.
fn is_invalid_data(error: &ConnectError) -> bool {
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        if let Some(io) = source.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::InvalidData;
        }
        next = source.source();
    }
    false
}

/// An answer of the JetStream API.
pub(crate) fn api(operation: &'static str, error: &jetstream::Error) -> Error {
    let kind = match error.error_code() {
        ErrorCode::STREAM_NOT_FOUND | ErrorCode::CONSUMER_NOT_FOUND => ErrorKind::NotFound,
        ErrorCode::CONSUMER_CREATE | ErrorCode::STREAM_NAME_EXIST | ErrorCode::STREAM_SUBJECT_OVERLAP => {
            ErrorKind::Mismatch
        }
        _ => ErrorKind::Broker,
    };
    let temporary = error.code() >= 500;
    Error::new(kind, operation, "the server refuses").temporary(temporary).because(error.clone())
}

/// Any other failure of a request.
pub(crate) fn request(
    operation: &'static str,
    error: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::new(ErrorKind::Connection, operation, "the server didn't answer the request").because(error)
}
