//! How channels, groups and slots are spelt on RabbitMQ. One place for all of it.

use postrider_core::{Error, GroupName, KEY_SLOTS, Order, RETRY_TIERS, Result, SEPARATOR};

/// The longest name that AMQP has room for, in bytes.
const MAX: usize = 255;

/// How the waits of [`RETRY_TIERS`] are spelt.
const TIERS: [&str; RETRY_TIERS.len()] = ["1s", "10s", "1m", "10m", "1h"];

/// Names on the broker, for one tenant.
#[derive(Clone, Debug, Default)]
pub struct Naming {
    tenant: Option<String>,
}

impl Naming {
    /// Names with a tenant's prefix, or without.
    ///
    /// # Errors
    /// A tenant that isn't one segment of letters, digits, `_` and `-`.
    pub fn new(tenant: Option<&str>) -> Result<Self> {
        if let Some(tenant) = tenant {
            // the same rules as a group's: one segment
            GroupName::new(tenant)
                .map_err(|e| Error::config("connect", "the option `tenant` is wrong").because(e))?;
        }
        Ok(Self { tenant: tenant.map(Into::into) })
    }

    /// The exchange of a channel; also the queue that a dead-letter channel always has.
    ///
    /// # Errors
    /// A name longer than AMQP has room for.
    pub fn exchange(&self, channel: &str) -> Result<String> {
        checked(match &self.tenant {
            // `~` stands in no name, so no tenant's channel is another's group
            Some(tenant) => format!("{tenant}~{channel}"),
            None => channel.into(),
        })
    }

    /// The exchange for what has no slot: foreign messages.
    ///
    /// # Errors
    /// A name longer than AMQP has room for.
    pub fn unslotted(&self, channel: &str) -> Result<String> {
        checked(format!("{}{SEPARATOR}unslotted", self.exchange(channel)?))
    }

    /// The queue of one of `partitions` partitions.
    ///
    /// # Errors
    /// A name longer than AMQP has room for.
    pub fn queue(&self, channel: &str, group: &str, partition: u32, partitions: u32) -> Result<String> {
        let name = format!("{}{SEPARATOR}{group}", self.exchange(channel)?);
        checked(if partitions > 1 { format!("{name}{SEPARATOR}{partition}") } else { name })
    }

    /// The exchange of one group alone.
    ///
    /// # Errors
    /// A name longer than AMQP has room for.
    pub fn redrive(&self, channel: &str, group: &str) -> Result<String> {
        checked(format!("{}{SEPARATOR}{group}{SEPARATOR}redrive", self.exchange(channel)?))
    }

    /// The exchange and the queue where a group's messages wait for one of [`RETRY_TIERS`], by its number.
    ///
    /// # Errors
    /// A name longer than AMQP has room for.
    pub fn retry(&self, channel: &str, group: &str, tier: usize) -> Result<String> {
        let wait = TIERS[tier];
        checked(format!("{}{SEPARATOR}{group}{SEPARATOR}retry-{wait}", self.exchange(channel)?))
    }

    /// The queue that holds no message and records how many partitions the group has.
    ///
    /// # Errors
    /// A name longer than AMQP has room for.
    pub fn marker(&self, channel: &str, group: &str) -> Result<String> {
        checked(format!("{}{SEPARATOR}{group}{SEPARATOR}partitions", self.exchange(channel)?))
    }

    /// The queue that keeps how often messages were begun alone by a group and not ended.
    ///
    /// # Errors
    /// A name longer than AMQP has room for.
    pub fn strikes(&self, channel: &str, group: &str) -> Result<String> {
        checked(format!("{}{SEPARATOR}{group}{SEPARATOR}strikes", self.exchange(channel)?))
    }

    /// The queue of a member's own copy.
    ///
    /// # Errors
    /// A name longer than AMQP has room for.
    pub fn ephemeral(&self, channel: &str, unique: u64) -> Result<String> {
        checked(format!("{}{SEPARATOR}~{unique:016x}", self.exchange(channel)?))
    }

    /// The routing key of a slot.
    pub fn slot(slot: u32) -> String {
        format!("~{slot:02}")
    }

    /// The slots that a partition reads.
    pub fn slots(partition: u32, partitions: u32) -> impl Iterator<Item = u32> {
        (0..KEY_SLOTS).filter(move |slot| slot % partitions == partition)
    }
}

/// Into how many partitions a group is split.
pub(crate) fn partitions(order: Order, asked: Option<u32>) -> u32 {
    match order {
        Order::None => 1,
        Order::Key | Order::Partition => asked.unwrap_or(8),
    }
}

fn checked(name: String) -> Result<String> {
    if name.len() <= MAX {
        return Ok(name);
    }
    let message = format!(
        "AMQP has room for names of {MAX} bytes at most, channel and group together are longer; shorten one"
    );
    Err(Error::config("declare", message).with("name", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_is_read_by_exactly_one_partition() {
        for partitions in [1, 2, 4, 8, 16, 32, 64] {
            let mut all: Vec<_> = (0..partitions).flat_map(|p| Naming::slots(p, partitions)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn tenants_and_channels_never_share_a_name() {
        let (plain, tenant) = (Naming::default(), Naming::new(Some("a")).unwrap());
        assert_eq!(tenant.queue("b", "g", 2, 4).unwrap(), "a~b--g--2");
        assert_ne!(tenant.unslotted("b").unwrap(), plain.unslotted("a").unwrap());
        assert!(Naming::new(Some("a.b")).is_err());
    }

    #[test]
    fn names_are_bounded_from_both_sides() {
        let naming = Naming::default();
        assert!(naming.queue(&"c".repeat(126), &"g".repeat(127), 0, 1).is_ok());
        assert!(naming.queue(&"c".repeat(127), &"g".repeat(127), 0, 1).is_err());
    }
}
