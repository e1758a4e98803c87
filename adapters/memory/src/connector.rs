//! From the URL `memory:` to a broker.

use postrider_core::{BoxFuture, Broker, BrokerUrl, Connector, Env, Error, Result};

use crate::broker::MemoryBroker;
use crate::config::MemoryConfig;

/// Connects `memory:`. Each connect makes a broker of its own; clone the [`Broker`] to share it.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryConnector;

impl Connector for MemoryConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["memory"]
    }

    fn connect<'a>(&'a self, url: &'a BrokerUrl, env: Env) -> BoxFuture<'a, Result<Broker>> {
        Box::pin(async move {
            if !url.hosts().is_empty() || !url.path().is_empty() {
                let message = "the embedded broker has no address; write `memory:` (each connect makes a broker of its own)";
                return Err(Error::config("connect", message).with("url", url));
            }
            let config: MemoryConfig = url.options()?;
            if config.max_messages == 0 {
                return Err(Error::config("connect", "the URL's option `max_messages` must be at least 1"));
            }
            Ok(Broker::new(MemoryBroker::with(config, env)))
        })
    }
}
