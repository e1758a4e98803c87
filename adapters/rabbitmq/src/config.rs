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
    /// Only checks; what is missing is an error. (Bindings can't be looked at over AMQP and are taken to be there.)
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
    /// It is sent again after a reconnect, under the same id, until its deadline. The broker keeps both copies; the consumer's
    /// idempotency absorbs the second.
    Resend,
}

/// Of which kind the groups' queues are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Replicated, and counts deliveries.
    #[default]
    Quorum,
    /// One copy; no count of deliveries and no limit on them.
    Classic,
}

/// How to connect, and the bounds that are kept. Its fields are the options of the URL.
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct RabbitmqConfig {
    /// How long connecting may take; 10 s unless set.
    #[serde(with = "postrider_core::duration")]
    pub connect_timeout: Duration,
    /// How long a send may wait for its confirm; 30 s unless set.
    #[serde(with = "postrider_core::duration")]
    pub send_deadline: Duration,
    /// How often each side tells the other that it lives; 10 s unless set, whole seconds. A side that is silent for twice as long
    /// is given up, so that is how long a member that vanished keeps its partitions.
    #[serde(with = "postrider_core::duration")]
    pub heartbeat: Duration,
    /// The broker's own `consumer_timeout`, after which it takes a queue away from a member that hasn't acknowledged a message;
    /// 30 min unless set, as the broker's. Health is degraded from four fifths of it on.
    #[serde(with = "postrider_core::duration")]
    pub consumer_timeout: Duration,
    /// What `declare` may do.
    pub declare: DeclareMode,
    /// What becomes of an unanswered publish.
    pub on_unknown: OnUnknown,
    /// Of which kind the queues are that `declare` creates.
    pub queue_type: QueueType,
    /// After how many deliveries the broker itself puts a message to the dead letters; 10,000 unless set. It guards against
    /// messages that bring down everyone who reads them, so it is far above every retry.
    pub delivery_limit: u32,
    /// Keeps programs on one virtual host apart: goes in front of every exchange's and queue's name.
    pub tenant: Option<String>,
    /// How many messages may be sent and unconfirmed; 4,096 unless set.
    pub max_pending: usize,
    /// How many bytes may be sent and unconfirmed; 32 MiB unless set.
    pub max_pending_bytes: usize,
    /// The largest body that may be published, in bytes; 768 KiB unless set. It must be at least 96 KiB below the broker's
    /// `max_message_size`, which AMQP doesn't tell.
    pub max_payload: usize,
    /// The path of a certificate authority's certificate, in PEM.
    pub tls_ca: Option<PathBuf>,
    /// The path of the client's certificate, in PEM.
    pub tls_cert: Option<PathBuf>,
    /// The path of the client's key, in PEM (PKCS #8).
    pub tls_key: Option<PathBuf>,
    /// Whether the client's certificate says who it is (SASL EXTERNAL), and not a user and password.
    pub external: bool,
}

impl Default for RabbitmqConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            send_deadline: Duration::from_secs(30),
            heartbeat: Duration::from_secs(10),
            consumer_timeout: Duration::from_mins(30),
            declare: DeclareMode::default(),
            on_unknown: OnUnknown::default(),
            queue_type: QueueType::default(),
            delivery_limit: 10_000,
            tenant: None,
            max_pending: 4096,
            max_pending_bytes: 32 * 1024 * 1024,
            max_payload: 768 * 1024,
            tls_ca: None,
            tls_cert: None,
            tls_key: None,
            external: false,
        }
    }
}

impl RabbitmqConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let refuse = |why: &str| Err(Error::config("connect", why));
        if self.max_pending == 0 || self.max_pending_bytes == 0 || self.delivery_limit == 0 {
            return refuse("`max_pending`, `max_pending_bytes` and `delivery_limit` must be at least 1");
        }
        let heartbeat = self.heartbeat.as_secs();
        if self.heartbeat.subsec_nanos() != 0 || !(1..=u64::from(u16::MAX)).contains(&heartbeat) {
            return refuse("`heartbeat` must be whole seconds, from 1s to 65535s");
        }
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return refuse("`tls_cert` and `tls_key` go together: set both or neither");
        }
        if self.external && self.tls_cert.is_none() {
            return refuse(
                "`external` needs `tls_cert` and `tls_key`: the certificate says who the client is",
            );
        }
        if self.connect_timeout.is_zero() || self.send_deadline.is_zero() || self.consumer_timeout.is_zero() {
            return refuse(
                "`connect_timeout`, `send_deadline` and `consumer_timeout` must be longer than nothing",
            );
        }
        Ok(())
    }
}

/// Without secrets.
impl std::fmt::Debug for RabbitmqConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RabbitmqConfig")
            .field("declare", &self.declare)
            .field("tenant", &self.tenant)
            .field("queue_type", &self.queue_type)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use postrider_core::BrokerUrl;

    use super::*;

    fn read(query: &str) -> Result<RabbitmqConfig> {
        let config: RabbitmqConfig = BrokerUrl::parse(&format!("amqp://h/?{query}"))?.options()?;
        config.check().map(|()| config)
    }

    #[test]
    fn options_become_fields() {
        let config = read("heartbeat=2s&queue_type=classic&on_unknown=resend&max_payload=1MiB").unwrap();
        assert_eq!((config.heartbeat, config.queue_type), (Duration::from_secs(2), QueueType::Classic));
        assert_eq!((config.on_unknown, config.max_payload), (OnUnknown::Resend, 1024 * 1024));
    }

    #[test]
    fn what_can_not_be_is_refused() {
        for (query, says) in [
            ("heartbeat=1500ms", "whole seconds"),
            ("heartbeat=0s", "whole seconds"),
            ("external=true", "tls_cert"),
            ("tls_key=k", "go together"),
            ("max_pending=0", "at least 1"),
            ("heartbeats=2s", "did you mean `heartbeat`?"),
        ] {
            let error = read(query).unwrap_err().to_string();
            assert!(error.contains(says), "{query}: {error}");
        }
    }
}
