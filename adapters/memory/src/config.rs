//! What can be set, by a struct or by the options of a URL.

use postrider_core::{BoxFuture, Broker, BrokerUrl, Connector, Env, Error, Result};
use serde::Deserialize;

use crate::broker::MemoryBroker;

/// The bounds of the embedded broker. As a URL: `memory:?max_messages=1000&max_bytes=1048576`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// The most messages that a channel holds; 10,000 unless set, at least 1.
    pub max_messages: usize,
    /// The most bytes (bodies and headers) that a channel holds; 64 MiB unless set.
    pub max_bytes: usize,
    /// The largest body that may be published, in bytes; 768 KiB unless set.
    pub max_payload: usize,
    /// Keeps programs on one broker apart. Every connect makes a broker of its own here, so it changes nothing.
    pub tenant: Option<String>,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { max_messages: 10_000, max_bytes: 64 * 1024 * 1024, max_payload: 768 * 1024, tenant: None }
    }
}

impl MemoryConfig {
    /// The most messages that a channel holds.
    pub fn max_messages(mut self, messages: usize) -> Self {
        self.max_messages = messages.max(1);
        self
    }

    /// The most bytes that a channel holds.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }
}

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
