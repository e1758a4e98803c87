//! Dead letters of the embedded broker: what a channel keeps and nobody has closed.

use std::num::NonZeroUsize;
use std::sync::Arc;

use postrider_core::{Error, ErrorKind, Letter, Letters, Origin, Result};

use crate::broker::MemoryBroker;
use crate::channel::Channel;

/// The open letters of one channel. Every reader sees all of them; a letter that the channel lets go of for want of room is gone.
#[derive(Debug)]
pub struct MemoryLetters {
    broker: MemoryBroker,
    channel: Arc<Channel>,
    /// The position that reading goes on with.
    next: u64,
}

impl MemoryLetters {
    pub(crate) fn open(broker: &MemoryBroker, channel: &str) -> Result<Self> {
        broker.check_open("letters")?;
        let found = broker.channel(channel).ok_or_else(|| {
            let message =
                "there is no such channel; start the router whose dead letters go there, or check the name";
            Error::new(ErrorKind::NotFound, "letters", message).with("channel", channel)
        })?;
        Ok(Self { broker: broker.clone(), channel: found, next: 0 })
    }
}

impl Letters for MemoryLetters {
    async fn read(&mut self, max: NonZeroUsize, into: &mut Vec<Letter>) -> Result<()> {
        self.broker.check_open("letters")?;
        self.next = self.channel.read_letters(self.next, max.get(), into);
        Ok(())
    }

    async fn close(&mut self, letters: &[Origin]) -> Result<()> {
        self.broker.check_open("letters")?;
        self.channel.close_letters(letters);
        Ok(())
    }

    async fn count(&mut self) -> Result<u64> {
        self.broker.check_open("letters")?;
        Ok(self.channel.open_letters())
    }

    fn describe(&self, letter: Origin) -> String {
        format!("memory:{}/{}", self.channel.name, letter.position)
    }

    async fn leave(&mut self) -> Result<()> {
        self.next = 0;
        Ok(())
    }
}
