//! How channels, groups and slots are spelt on RabbitMQ. One place for all of it.

use postrider_core::{Channel, Error, GroupName, KEY_SLOTS, Order, RETRY_TIERS, Result, SEPARATOR};

/// The longest name that AMQP has room for, in bytes.
const MAX: usize = 255;

/// How the waits of [`RETRY_TIERS`] are spelt.
const TIERS: [&str; RETRY_TIERS.len()] = ["1s", "10s", "1m", "10m", "1h"];

/// What one of our queues is there for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// It has the channel's own name: the queue that a dead-letter channel always has.
    Channel,
    /// One of a group's partitions, by its number, or its only queue.
    Partition(GroupName, Option<u32>),
    /// Says how many partitions a group has, and is attended to by its members.
    Marker(GroupName),
    /// Where a group's messages wait.
    Retry(GroupName),
    /// A member's own copy.
    Ephemeral,
    /// Something else of a group's.
    Other(GroupName),
}

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

    /// Whether names have a tenant's prefix.
    pub fn has_tenant(&self) -> bool {
        self.tenant.is_some()
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
        checked(format!("{}{SEPARATOR}{group}{SEPARATOR}suspects", self.exchange(channel)?))
    }

    /// The queue of a member's own copy.
    ///
    /// # Errors
    /// A name longer than AMQP has room for.
    pub fn ephemeral(&self, channel: &str, unique: u64) -> Result<String> {
        checked(format!("{}{SEPARATOR}~{unique:016x}", self.exchange(channel)?))
    }

    /// The channel, and what the queue of this name is there for; `None` where the name is nothing of this tenant's.
    pub fn read(&self, name: &str) -> Option<(Channel, Role)> {
        let name = match &self.tenant {
            Some(tenant) => name.strip_prefix(&**tenant)?.strip_prefix('~')?,
            None => name,
        };
        let Some((channel, rest)) = name.split_once(SEPARATOR) else {
            return Some((Channel::new(name).ok()?, Role::Channel));
        };
        let channel = Channel::new(channel).ok()?;
        if rest.starts_with('~') {
            return Some((channel, Role::Ephemeral));
        }
        let (group, role) =
            rest.split_once(SEPARATOR).map_or((rest, None), |(group, role)| (group, Some(role)));
        let group = GroupName::new(group).ok()?;
        let role = match role {
            None => Role::Partition(group, None),
            Some("partitions") => Role::Marker(group),
            Some(role) if role.starts_with("retry-") => Role::Retry(group),
            Some(role) => match role.parse() {
                Ok(number) => Role::Partition(group, Some(number)),
                Err(_) => Role::Other(group),
            },
        };
        Some((channel, role))
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
    fn names_lead_back_to_what_they_were_made_from() {
        let billing = || GroupName::new("billing").unwrap();
        for naming in [Naming::default(), Naming::new(Some("a")).unwrap()] {
            for channel in ["orders", "orders.billing.dlq"] {
                let named = |name: Result<String>, role: Role| {
                    assert_eq!(naming.read(&name.unwrap()), Some((Channel::new(channel).unwrap(), role)));
                };
                named(naming.exchange(channel), Role::Channel);
                named(naming.queue(channel, "billing", 0, 1), Role::Partition(billing(), None));
                named(naming.queue(channel, "billing", 3, 8), Role::Partition(billing(), Some(3)));
                named(naming.marker(channel, "billing"), Role::Marker(billing()));
                named(naming.retry(channel, "billing", 1), Role::Retry(billing()));
                named(naming.strikes(channel, "billing"), Role::Other(billing()));
                named(naming.ephemeral(channel, 7), Role::Ephemeral);
            }
        }
        // another tenant's, and somebody else's
        assert_eq!(Naming::default().read("a~orders"), None);
        assert_eq!(Naming::new(Some("a")).unwrap().read("orders"), None);
        assert_eq!(Naming::default().read("amq.gen-1 x"), None);
    }

    #[test]
    fn names_are_bounded_from_both_sides() {
        let naming = Naming::default();
        assert!(naming.queue(&"c".repeat(126), &"g".repeat(127), 0, 1).is_ok());
        assert!(naming.queue(&"c".repeat(127), &"g".repeat(127), 0, 1).is_err());
    }
}
