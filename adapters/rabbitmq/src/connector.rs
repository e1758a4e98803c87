//! From a URL to a connected broker.

use postrider_core::{BoxFuture, Broker, BrokerUrl, Connector, Env, Result};

use crate::broker::RabbitmqBroker;

/// Connects `amqp://` and `amqps://`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RabbitmqConnector;

impl Connector for RabbitmqConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["amqp", "amqps"]
    }

    fn connect<'a>(&'a self, url: &'a BrokerUrl, env: Env) -> BoxFuture<'a, Result<Broker>> {
        Box::pin(
            async move { Ok(Broker::on_runtime(RabbitmqBroker::connect(url, url.options()?, env).await?)) },
        )
    }
}
