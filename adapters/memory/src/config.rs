//! What can be set, by a struct or by the options of a URL.

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
