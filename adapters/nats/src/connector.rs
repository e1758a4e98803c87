//! From a URL to a connected server.

use postrider_core::{BoxFuture, Broker, BrokerUrl, Connector, Env, Result};

use crate::broker::NatsBroker;

/// Connects `nats://` and `tls://`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NatsConnector;

impl Connector for NatsConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["nats", "tls"]
    }

    fn connect<'a>(&'a self, url: &'a BrokerUrl, env: Env) -> BoxFuture<'a, Result<Broker>> {
        Box::pin(async move { Ok(Broker::on_runtime(NatsBroker::connect(url, url.options()?, env).await?)) })
    }
}
