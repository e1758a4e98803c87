//! The producing client and what it hears: whether brokers answer, what became of each message.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postrider_core::{BrokerUrl, Env, Error, ErrorKind, Health, Receipt, Result, Window};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, client::Client};
use serde::Deserialize;
use tokio::sync::watch;

use crate::config::KafkaConfig;
use crate::confirms::Sends;
use crate::error;
use crate::patience::ask_again;
use crate::properties;

/// How long one request of metadata may take; it is tried again within its caller's own deadline.
const REQUEST: Duration = Duration::from_secs(3);

/// What is left for headers within a topic's bound on a message: the user's, and those of a dead letter.
pub(crate) const HEADER_ROOM: usize = 96 * 1024;

/// What the producing client reports.
#[derive(Debug)]
pub(crate) struct Ears {
    up: watch::Sender<bool>,
    sends: Arc<Sends>,
    /// The first refusal of the credentials, and what ended the client for good.
    refused: Mutex<Option<Code>>,
    /// What the client said of a host whose name nobody knows.
    unresolved: Mutex<Option<String>>,
    fatal: Mutex<Option<String>>,
}

/// The part of librdkafka's statistics that is looked at.
#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    brokers: HashMap<String, BrokerState>,
    eos: Option<Idempotence>,
}

#[derive(Deserialize)]
struct Idempotence {
    #[serde(default)]
    producer_id: i64,
}

#[derive(Deserialize)]
struct BrokerState {
    #[serde(default)]
    state: String,
}

impl ClientContext for Ears {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn stats_raw(&self, statistics: &[u8]) {
        if let Ok(found) = serde_json::from_slice::<Statistics>(statistics) {
            let up = found.brokers.values().any(|broker| broker.state == "UP");
            self.up.send_if_modified(|known| std::mem::replace(known, up) != up);
            if let Some(producer) = found.eos.map(|eos| eos.producer_id).filter(|id| *id >= 0) {
                self.sends.produced_by(producer as u64);
            }
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
        match error.rdkafka_error_code() {
            Some(Code::AllBrokersDown) => {
                self.up.send_if_modified(|up| std::mem::replace(up, false));
            }
            Some(code @ (Code::Authentication | Code::SaslAuthenticationFailed)) => {
                self.refused.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(code);
                self.up.send_if_modified(|up| std::mem::replace(up, false));
            }
            Some(Code::Resolve) => {
                *self.unresolved.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
            }
            Some(Code::Fatal) => {
                self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason.to_owned());
            }
            _ => {}
        }
    }
}

impl ProducerContext for Ears {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, token: usize) {
        let outcome = match result {
            Ok(message) => Ok(Receipt::new(message.partition() as u32, message.offset() as u64)),
            Err((error, _)) => Err(error::delivery(error.rdkafka_error_code().unwrap_or(Code::Unknown))),
        };
        self.sends.delivered(token as u64, outcome);
    }
}

/// A client that only asks or reads: what it logs becomes events of ours, and it needs nothing else of its callbacks.
///
/// The client's own default context logs each error event at ERROR, also the end of a partition, which is no error.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClientLog;

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

impl ConsumerContext for ClientLog {}

/// An error event of a client. Callers get errors as results, so the event is detail.
pub(crate) fn log_error(error: &KafkaError, reason: &str) {
    let code = error.rdkafka_error_code();
    tracing::debug!(target: "postrider::connection", ?code, reason, "client error");
}

/// librdkafka's log, as events of ours.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error => {
            tracing::warn!(target: "postrider::connection", facility, message, "client");
        }
        _ => tracing::debug!(target: "postrider::connection", facility, message, "client"),
    }
}

/// The producing client, and a watch on its state.
#[derive(Clone)]
pub(crate) struct Connection {
    pub(crate) producer: Arc<ThreadedProducer<Ears>>,
    pub(crate) common: ClientConfig,
    pub(crate) sends: Arc<Sends>,
    pub(crate) env: Env,
    up: watch::Receiver<bool>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("up", &self.is_up()).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects within the deadline, or says why not.
    pub(crate) async fn open(url: &BrokerUrl, config: &KafkaConfig, env: &Env) -> Result<Self> {
        let common = properties::common(url, config)?;
        let (sender, up) = watch::channel(true);
        let bound = Window { messages: config.max_pending, bytes: config.max_pending_bytes };
        let sends = Arc::new(Sends::new(bound));
        let ears = Ears {
            up: sender,
            sends: Arc::clone(&sends),
            refused: Mutex::new(None),
            unresolved: Mutex::new(None),
            fatal: Mutex::new(None),
        };
        let producer: ThreadedProducer<Ears> = properties::producer(&common, config, HEADER_ROOM)
            .create_with_context(ears)
            .map_err(error::creation)?;
        let connection = Self { producer: Arc::new(producer), common, sends, env: env.clone(), up };
        connection.first_answer(url, config, env).await?;
        Ok(connection)
    }

    /// Resolves when a broker has answered, or says why none did.
    async fn first_answer(&self, url: &BrokerUrl, config: &KafkaConfig, env: &Env) -> Result<()> {
        let listed: Vec<_> = url.hosts().iter().map(|host| host.address(9092)).collect();
        let listed = listed.join(", ");
        let deadline = env.deadline(config.connect_timeout);
        loop {
            let left = deadline.saturating_duration_since(env.now());
            let asked =
                self.ask(move |client| client.fetch_cluster_id(left.min(Duration::from_millis(200)))).await?;
            if asked.is_some() {
                return Ok(());
            }
            if let Some(code) = *self.ears().refused.lock().unwrap_or_else(PoisonError::into_inner) {
                return Err(error::code("connect", code).with("address", listed));
            }
            if left.is_zero() {
                let unresolved = self.ears().unresolved.lock().unwrap_or_else(PoisonError::into_inner).take();
                return Err(unanswered(config.connect_timeout, unresolved).with("address", listed));
            }
        }
    }

    fn ears(&self) -> &Ears {
        self.producer.client().context()
    }

    /// Runs a request that blocks its thread.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Client<Ears>) -> T + Send + 'static,
    ) -> Result<T> {
        let producer = Arc::clone(&self.producer);
        let asked = tokio::task::spawn_blocking(move || request(producer.client()));
        asked
            .await
            .map_err(|e| Error::new(ErrorKind::Closed, "connect", "the runtime is stopping").because(e))
    }

    /// How many partitions the topic has; `None` where there is no such topic.
    pub(crate) async fn partitions(&self, operation: &'static str, topic: &str) -> Result<Option<u32>> {
        let asked = topic.to_owned();
        let found = self.ask(move |client| {
            let metadata = client.fetch_metadata(Some(&asked), REQUEST)?;
            let topic = metadata.topics().iter().find(|topic| topic.name() == asked);
            Ok::<_, KafkaError>(topic.map_or((0, true, None), |topic| {
                let led = topic.partitions().iter().all(|partition| partition.leader() >= 0);
                (topic.partitions().len() as u32, led, topic.error().map(Code::from))
            }))
        });
        let (count, led, refused) =
            found.await?.map_err(|e| error::client(operation, e).with("topic", topic))?;
        match refused {
            Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => Ok(None),
            None if count == 0 => Ok(None),
            None if led => Ok(Some(count)),
            // without a leader it is just made, or one is being chosen: it is there, but not to be written to yet
            other => {
                let refused = KafkaError::MetadataFetch(other.unwrap_or(Code::LeaderNotAvailable));
                Err(error::client(operation, refused).with("topic", topic))
            }
        }
    }

    /// How many messages the topic holds.
    pub(crate) async fn held(&self, operation: &'static str, topic: &str) -> Result<u64> {
        ask_again(&self.env, REQUEST, error::is_leaderless, || self.held_now(operation, topic)).await
    }

    async fn held_now(&self, operation: &'static str, topic: &str) -> Result<u64> {
        let count = self.partitions(operation, topic).await?.unwrap_or_default();
        let asked = topic.to_owned();
        let found = self.ask(move |client| {
            let mut held = 0;
            for partition in 0..count {
                let (low, high) = client.fetch_watermarks(&asked, partition as i32, REQUEST)?;
                held += high.saturating_sub(low).max(0) as u64;
            }
            Ok::<_, KafkaError>(held)
        });
        found.await?.map_err(|e| error::client(operation, e).with("topic", topic))
    }

    pub(crate) fn is_up(&self) -> bool {
        *self.up.borrow()
    }

    /// Resolves when a broker answers.
    pub(crate) async fn up(&self) {
        let mut up = self.up.clone();
        // copied out at once: the reference holds a lock
        let found = up.wait_for(|up| *up).await.map(|up| *up);
        if found.is_err() {
            // the client is gone, and with it whoever waits
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn health(&self) -> Health {
        if let Some(reason) = &*self.ears().fatal.lock().unwrap_or_else(PoisonError::into_inner) {
            return Health::down(format!("the producer can't go on: {reason}; connect again"));
        }
        if self.is_up() {
            Health::up()
        } else {
            Health::degraded("no broker answers; the connection is being restored")
        }
    }

    /// Throws away what the client still has, so that each send gets its outcome.
    pub(crate) async fn purge(&self, until: Instant, env: &Env) {
        let flags = rdkafka::producer::PurgeConfig::default().queue().inflight();
        self.producer.purge(flags);
        let left = until.saturating_duration_since(env.now()).max(Duration::from_millis(500));
        tokio::select! {
            _ = self.sends.pending.flushed() => {}
            () = env.sleep(left) => {}
        }
    }
}

/// Nobody answered in time; the client may have said of a host that its name is unknown.
fn unanswered(within: Duration, unresolved: Option<String>) -> Error {
    let Some(reason) = unresolved else {
        let message = format!(
            "no broker answered within {within:?}; is one running there, and is its advertised address right?"
        );
        return Error::new(ErrorKind::Timeout, "connect", message);
    };
    let message = format!(
        "the name of a host is unknown, and no broker answered within {within:?}; is the name written right, in the URL or in the broker's advertised address, and does the resolver (DNS) know it?"
    );
    Error::new(ErrorKind::Connection, "connect", message).with("reason", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_host_whose_name_is_unknown_is_told_as_that() {
        // longer than a name can be: no resolver has to be asked
        let host = format!("{}.invalid", "x".repeat(64));
        let url = BrokerUrl::parse(&format!("kafka://{host}:9?connect_timeout=3s")).unwrap();
        let config = KafkaConfig::from_url(&url).unwrap();
        let error = Connection::open(&url, &config, &Env::system()).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Connection, "{text}");
        assert!(text.contains("the name of a host is unknown") && text.contains(&host), "{text}");
    }

    #[test]
    fn a_host_that_does_not_answer_is_not_told_as_unknown() {
        let error = unanswered(Duration::from_secs(1), None);
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(!error.to_string().contains("unknown"), "{error}");
    }
}
