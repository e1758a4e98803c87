//! What can be set, by a struct or by the options of a URL.

use std::path::PathBuf;
use std::time::Duration;

use postrider_core::{Error, Result};
use serde::Deserialize;

/// What `declare` may do at the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeclareMode {
    /// Creates what is missing; never alters what is there.
    #[default]
    Create,
    /// Only checks; what is missing is an error.
    Check,
    /// Neither: what is missing shows when it is used.
    None,
}

/// What becomes of a publish that was handed over and never answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnknown {
    /// Its outcome is unknown, and the caller decides.
    #[default]
    Report,
    /// It is sent again after a reconnect, under the same id, until its deadline. The server drops the second copy within the
    /// stream's duplicate window of two minutes.
    Resend,
}

/// How to connect, and the bounds that are kept. Its fields are the options of the URL.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct NatsConfig {
    /// How long connecting may take; 10 s unless set.
    #[serde(with = "postrider_core::duration")]
    pub connect_timeout: Duration,
    /// How long a send may wait for its confirm; 30 s unless set.
    #[serde(with = "postrider_core::duration")]
    pub send_deadline: Duration,
    /// After how long without a sign of life the server redelivers a message (`ack_wait`); 30 s unless set, at least 1 s.
    #[serde(with = "postrider_core::duration")]
    pub claim_timeout: Duration,
    /// How often the connection is checked; 10 s unless set.
    #[serde(with = "postrider_core::duration")]
    pub ping_interval: Duration,
    /// What `declare` may do.
    pub declare: DeclareMode,
    /// What becomes of an unanswered publish.
    pub on_unknown: OnUnknown,
    /// Whether the members of a group share its partitions evenly, as they do unless it is off. Without, who comes first holds
    /// all, and the others stand by.
    pub balance: bool,
    /// Keeps programs on one server apart: goes in front of every stream's and subject's name.
    pub tenant: Option<String>,
    /// How many messages may be sent and unconfirmed; 4,096 unless set.
    pub max_pending: usize,
    /// How many bytes may be sent and unconfirmed; 32 MiB unless set.
    pub max_pending_bytes: usize,
    /// The largest body that may be published, in bytes; 768 KiB unless set, and never more than the server takes.
    pub max_payload: usize,
    /// How many messages may be out and unacknowledged in one partition, of all members together; 4,096 unless set.
    pub max_ack_pending: i64,
    /// How many copies of each stream the servers keep; 1 unless set.
    pub replicas: usize,
    /// An authentication token.
    pub token: Option<String>,
    /// The seed of an nkey.
    pub nkey: Option<String>,
    /// The path of a credentials file.
    pub creds: Option<PathBuf>,
    /// The path of a certificate authority's certificate, in PEM.
    pub tls_ca: Option<PathBuf>,
    /// The path of the client's certificate, in PEM.
    pub tls_cert: Option<PathBuf>,
    /// The path of the client's key, in PEM.
    pub tls_key: Option<PathBuf>,
}

impl Default for NatsConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            send_deadline: Duration::from_secs(30),
            claim_timeout: Duration::from_secs(30),
            ping_interval: Duration::from_secs(10),
            declare: DeclareMode::default(),
            on_unknown: OnUnknown::default(),
            balance: true,
            tenant: None,
            max_pending: 4096,
            max_pending_bytes: 32 * 1024 * 1024,
            max_payload: 768 * 1024,
            max_ack_pending: 4096,
            replicas: 1,
            token: None,
            nkey: None,
            creds: None,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
        }
    }
}

impl NatsConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |why: &str| Err(Error::config("connect", why));
        if self.claim_timeout < Duration::from_secs(1) {
            return refuse(
                "`claim_timeout` must be at least 1s: progress is told to the server three times within it",
            );
        }
        if self.max_pending == 0
            || self.max_pending_bytes == 0
            || self.max_ack_pending < 1
            || self.replicas == 0
        {
            return refuse(
                "`max_pending`, `max_pending_bytes`, `max_ack_pending` and `replicas` must be at least 1",
            );
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return refuse("`tls_cert` and `tls_key` go together: set both or neither");
        }
        if self.connect_timeout.is_zero() || self.send_deadline.is_zero() || self.ping_interval.is_zero() {
            return refuse(
                "`connect_timeout`, `send_deadline` and `ping_interval` must be longer than nothing",
            );
        }
        Ok(())
    }
}

/// Without secrets.
impl std::fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsConfig")
            .field("declare", &self.declare)
            .field("tenant", &self.tenant)
            .field("claim_timeout", &self.claim_timeout)
            .finish_non_exhaustive()
    }
}
