//! What can be set, by a struct or by the options of a URL.

use std::path::PathBuf;
use std::time::Duration;

use postrider_core::{BrokerUrl, Error, Result};
use serde::Deserialize;

use crate::properties;

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

/// By which protocol a group's members share its partitions. Members of one group must agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupProtocol {
    /// The one that every broker has; partitions move cooperatively (`cooperative-sticky`).
    #[default]
    Classic,
    /// The newer one of [KIP-848], Kafka 4.0 and newer: the broker assigns, and its own settings say how long a claim holds.
    ///
    /// [KIP-848]: https://cwiki.apache.org/confluence/x/HhD1D
    Consumer,
}

/// How a user and a password are shown to the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum SaslMechanism {
    /// As they are: only over TLS, or where nobody listens.
    #[default]
    #[serde(rename = "plain")]
    Plain,
    /// SCRAM with SHA-256; needs the feature `tls`.
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// SCRAM with SHA-512; needs the feature `tls`.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
}

/// How to connect, and the bounds that are kept. Its fields are the options of the URL; beside them, an option
/// `native.NAME=VALUE` sets a property of librdkafka.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct KafkaConfig {
    /// How long connecting may take; 10 s unless set.
    #[serde(with = "postrider_core::duration")]
    pub connect_timeout: Duration,
    /// How long a send may wait for its confirm; 30 s unless set. Until then the client sends it again by itself, without
    /// doubling it and in order.
    #[serde(with = "postrider_core::duration")]
    pub send_deadline: Duration,
    /// After how long without a sign of life a member's partitions go to others (`session.timeout.ms`); 30 s unless set. With
    /// `group_protocol=consumer` the broker's own setting holds.
    #[serde(with = "postrider_core::duration")]
    pub claim_timeout: Duration,
    /// How long a partition that goes to another member waits for what runs under it; 30 s unless set.
    #[serde(with = "postrider_core::duration")]
    pub release_timeout: Duration,
    /// How often the group's place is written down; 100 ms unless set. What was settled since comes again after a crash.
    #[serde(with = "postrider_core::duration")]
    pub commit_interval: Duration,
    /// What `declare` may do.
    pub declare: DeclareMode,
    /// By which protocol partitions are shared.
    pub group_protocol: GroupProtocol,
    /// Keeps programs on one cluster apart: goes in front of every topic's and group's name.
    pub tenant: Option<String>,
    /// How many partitions a channel's topic gets when it is created; 8 unless set.
    pub partitions: u32,
    /// How many copies of each topic the brokers keep; the cluster's own default unless set.
    pub replicas: Option<u32>,
    /// How many messages may be sent and unconfirmed; 4,096 unless set.
    pub max_pending: usize,
    /// How many bytes may be sent and unconfirmed; 32 MiB unless set.
    pub max_pending_bytes: usize,
    /// The largest body that may be published, in bytes; 768 KiB unless set. Topics must take 96 KiB more.
    pub max_payload: usize,
    /// How the URL's user and password are shown to the broker.
    pub sasl_mechanism: SaslMechanism,
    /// The path of a certificate authority's certificate, in PEM; the system's unless set.
    pub tls_ca: Option<PathBuf>,
    /// The path of the client's certificate, in PEM.
    pub tls_cert: Option<PathBuf>,
    /// The path of the client's key, in PEM.
    pub tls_key: Option<PathBuf>,
    /// Properties of librdkafka, at the user's risk. Those on which a promise rests are refused.
    #[serde(skip)]
    pub native: Vec<(String, String)>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            send_deadline: Duration::from_secs(30),
            claim_timeout: Duration::from_secs(30),
            release_timeout: Duration::from_secs(30),
            commit_interval: Duration::from_millis(100),
            declare: DeclareMode::default(),
            group_protocol: GroupProtocol::default(),
            tenant: None,
            partitions: 8,
            replicas: None,
            max_pending: 4096,
            max_pending_bytes: 32 * 1024 * 1024,
            max_payload: 768 * 1024,
            sasl_mechanism: SaslMechanism::default(),
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            native: Vec::new(),
        }
    }
}

impl KafkaConfig {
    /// Reads the options of a URL.
    ///
    /// # Errors
    /// `Config`: an unknown option (with the nearest right one), or a value that can't be read.
    pub fn from_url(url: &BrokerUrl) -> Result<Self> {
        let (own, native) = properties::split(url)?;
        let mut config: Self = own.options()?;
        config.native = native;
        Ok(config)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |why: &str| Err(Error::config("connect", why));
        if self.max_pending == 0
            || self.max_pending_bytes == 0
            || self.partitions == 0
            || self.replicas == Some(0)
        {
            return refuse(
                "`max_pending`, `max_pending_bytes`, `partitions` and `replicas` must be at least 1",
            );
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return refuse("`tls_cert` and `tls_key` go together: set both or neither");
        }
        let durations = [
            self.connect_timeout,
            self.send_deadline,
            self.claim_timeout,
            self.release_timeout,
            self.commit_interval,
        ];
        if durations.iter().any(Duration::is_zero) {
            return refuse(
                "`connect_timeout`, `send_deadline`, `claim_timeout`, `release_timeout` and `commit_interval` must be longer than nothing",
            );
        }
        properties::check(&self.native)
    }
}

/// Without secrets.
impl std::fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("declare", &self.declare)
            .field("tenant", &self.tenant)
            .field("claim_timeout", &self.claim_timeout)
            .field("group_protocol", &self.group_protocol)
            .finish_non_exhaustive()
    }
}
