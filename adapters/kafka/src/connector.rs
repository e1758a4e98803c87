//! From a URL to a connected cluster.

use postrider_core::{BoxFuture, Broker, BrokerUrl, Connector, Env, Result};

use crate::broker::KafkaBroker;
use crate::config::KafkaConfig;

/// Connects `kafka://` and, over TLS, `kafka+ssl://`.
#[derive(Clone, Copy, Debug, Default)]
pub struct KafkaConnector;

impl Connector for KafkaConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["kafka", "kafka+ssl"]
    }

    fn connect<'a>(&'a self, url: &'a BrokerUrl, env: Env) -> BoxFuture<'a, Result<Broker>> {
        Box::pin(async move {
            Ok(Broker::on_runtime(KafkaBroker::connect(url, KafkaConfig::from_url(url)?, env).await?))
        })
    }
}
