//! What can be set, by a struct or by the options of a URL.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The bounds of the embedded broker. As a URL: `memory:?max_messages=1000&max_bytes=1048576`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// The most messages that a channel holds; 10,000 unless set, at least 1.
    pub max_messages: usize,
    /// The most bytes (bodies and headers) that a channel holds; 64 MiB unless set. Small bodies and headers lie in
    /// [chunks](postrider_core::chunked) that are freed as a whole, so a message that stays when those around it go takes up to 16 KiB of
    /// memory: one chunk, or two.
    pub max_bytes: usize,
    /// The largest body that may be published, in bytes; 768 KiB unless set.
    pub max_payload: usize,
    /// Whether a publish to a channel that no group reads fails, as it does on RabbitMQ; `false` unless set. For tests of a service
    /// that is deployed before its readers.
    pub require_readers: bool,
    /// Keeps programs on one broker apart. Every connect makes a broker of its own here, so it changes nothing.
    pub tenant: Option<String>,
    /// Bounds of single channels.
    #[serde(skip)]
    channels: BTreeMap<String, Bound>,
}

/// How much one channel holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            max_messages: 10_000,
            max_bytes: 64 * 1024 * 1024,
            max_payload: 768 * 1024,
            require_readers: false,
            tenant: None,
            channels: BTreeMap::new(),
        }
    }
}

impl MemoryConfig {
    /// The most messages that a channel holds.
    pub fn max_messages(mut self, messages: usize) -> Self {
        self.max_messages = messages.max(1);
        self
    }

    /// Another bound for one channel, in messages and bytes: for one that a handler reads and sends many messages to at once.
    ///
    /// ```
    /// use postrider_memory::MemoryConfig;
    /// let config = MemoryConfig::default().channel("pages", 1_000_000, 256 * 1024 * 1024);
    /// assert_ne!(config, MemoryConfig::default());
    /// ```
    pub fn channel(mut self, name: &str, messages: usize, bytes: usize) -> Self {
        self.channels.insert(name.to_owned(), Bound { messages: messages.max(1), bytes });
        self
    }

    /// How much a channel holds.
    pub(crate) fn bound_of(&self, channel: &str) -> Bound {
        let all = Bound { messages: self.max_messages, bytes: self.max_bytes };
        // there hardly ever are any
        if self.channels.is_empty() { all } else { self.channels.get(channel).copied().unwrap_or(all) }
    }

    /// The most bytes that a channel holds.
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Whether a publish to a channel that no group reads fails, as it does on RabbitMQ.
    pub fn require_readers(mut self, require: bool) -> Self {
        self.require_readers = require;
        self
    }
}
