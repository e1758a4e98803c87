//! What a channel keeps: the messages by position, from the oldest kept to the newest. Who has read what is `group`'s.

use std::collections::VecDeque;

use postrider_core::Envelope;

/// The messages of a channel.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// The position of the oldest message.
    base: u64,
    entries: VecDeque<Envelope>,
    bytes: usize,
}

impl Log {
    /// The position of the oldest message that is kept.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// The position that the next message gets.
    pub(crate) fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn get(&self, position: u64) -> Option<&Envelope> {
        self.entries.get(usize::try_from(position.checked_sub(self.base)?).ok()?)
    }

    pub(crate) fn push(&mut self, envelope: Envelope) -> u64 {
        let position = self.end();
        self.bytes += envelope.byte_len();
        self.entries.push_back(envelope);
        position
    }

    /// Lets the oldest go.
    pub(crate) fn pop(&mut self) -> bool {
        let Some(envelope) = self.entries.pop_front() else {
            return false;
        };
        self.base += 1;
        self.bytes -= envelope.byte_len();
        true
    }

    /// The first position at or after a time in milliseconds since the Unix epoch.
    pub(crate) fn at_time(&self, time_ms: u64) -> u64 {
        let before = self.entries.iter().take_while(|envelope| envelope.time_ms() < time_ms).count();
        self.base + before as u64
    }
}
