//! Which topic a message comes from, in numbers: what is the group's alone stands beside the channel's topic.

use std::time::Duration;

use postrider_core::RETRY_TIERS;

/// Which of a group's two topics is read. The shards of the second are numbered behind those of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The channel's.
    Channel,
    /// The group's own: what is redriven to it in the first partition, what waits for a retry in one for each of [`RETRY_TIERS`].
    Group,
}

impl Source {
    /// The shard of the first partition.
    pub(crate) const fn base(self) -> u32 {
        match self {
            Self::Channel => 0,
            Self::Group => 1 << 24,
        }
    }

    /// Of a shard of either topic.
    pub(crate) const fn of(shard: u32) -> Self {
        if shard < Self::Group.base() { Self::Channel } else { Self::Group }
    }

    /// How long the messages of a partition wait.
    pub(crate) fn wait(self, number: i32) -> Option<Duration> {
        let tier = usize::try_from(number).ok()?.checked_sub(1)?;
        RETRY_TIERS.get(tier).copied().filter(|_| self == Self::Group)
    }
}
