//! NATS JetStream for postrider.
use postrider_core::{BoxFuture, Broker, BrokerUrl, Connector, Env, Error, Result};
/// Placeholder.
#[derive(Debug)]
pub struct NatsConnector;
impl Connector for NatsConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["nats", "tls"]
    }
    fn connect<'a>(&'a self, _: &'a BrokerUrl, _: Env) -> BoxFuture<'a, Result<Broker>> {
        Box::pin(async { Err(Error::config("connect", "x")) })
    }
}
