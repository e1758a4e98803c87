//! How channels, groups and slots are spelt on NATS. One place for all of it.

use postrider_core::{Channel, Error, GroupName, KEY_SLOTS, Order, Result, SEPARATOR};

/// The longest name that the server takes for a stream or consumer, in bytes.
const MAX: usize = 255;

/// Names on the server, for one tenant.
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

    /// The stream of a channel: its dots become `~`, which no channel has, so that no two channels share one.
    ///
    /// # Errors
    /// A name longer than the server takes.
    pub fn stream(&self, channel: &str) -> Result<String> {
        let name = channel.replace('.', "~");
        checked(match &self.tenant {
            Some(tenant) => format!("{tenant}{SEPARATOR}{name}"),
            None => name,
        })
    }

    /// The channel that has this stream; `None` where the name is no channel's of this tenant.
    pub fn channel(&self, stream: &str) -> Option<Channel> {
        let name = match &self.tenant {
            Some(tenant) => stream.strip_prefix(&**tenant)?.strip_prefix(SEPARATOR)?,
            None => stream,
        };
        // a dot can't stand in a stream's name, so it is nobody's spelling of a channel
        Channel::new(name.replace('~', ".")).ok()
    }

    /// The group that has this consumer on a channel's stream; `None` where the name is no group's.
    pub fn group(&self, channel: &str, consumer: &str) -> Option<GroupName> {
        let rest = consumer.strip_prefix(&channel.replace('.', "~"))?.strip_prefix(SEPARATOR)?;
        let group = match rest.split_once(SEPARATOR) {
            Some((group, partition)) => partition.parse::<u32>().ok().map(|_| group)?,
            None => rest,
        };
        GroupName::new(group).ok()
    }

    /// The channel's own subject: what foreign publishers write to, and what has no slot.
    pub fn subject(&self, channel: &str) -> String {
        self.subject_before(channel, 0)
    }

    /// The same, with room for what is to follow.
    fn subject_before(&self, channel: &str, room: usize) -> String {
        let tenant = self.tenant.as_deref();
        let length = tenant.map_or(0, |tenant| tenant.len() + 2) + channel.len() + room;
        let mut subject = String::with_capacity(length);
        if let Some(tenant) = tenant {
            subject.extend(["~", tenant, "."]);
        }
        subject.push_str(channel);
        subject
    }

    /// The subject of a slot.
    pub fn slot(&self, channel: &str, slot: u32) -> String {
        // asked for with each message that is published: nothing is formatted, and no more memory taken than is filled
        let digit = |n: u32| char::from_digit(n % 10, 10).unwrap_or_default();
        let mut subject = self.subject_before(channel, 4);
        subject.push_str(".~");
        subject.extend([digit(slot / 10), digit(slot)]);
        subject
    }

    /// The subject of what is redriven to one group.
    pub fn redrive(&self, channel: &str, group: &str) -> String {
        format!("{}.~redrive.{group}", self.subject(channel))
    }

    /// Where a message waits that is redriven to a group later. The server keeps one for each subject, so each has its own.
    pub fn retry(&self, channel: &str, group: &str, unique: &str) -> String {
        format!("{}.~retry.{group}.{unique}", self.subject(channel))
    }

    /// Where it is kept how often a message of the stream was begun alone by a group and not ended.
    pub fn strikes(&self, channel: &str, group: &str, sequence: impl std::fmt::Display) -> String {
        format!("{}.~strikes.{group}.{sequence}", self.subject(channel))
    }

    /// All subjects of a channel's stream.
    pub fn subjects(&self, channel: &str) -> Vec<String> {
        let slots = (0..KEY_SLOTS).map(|slot| self.slot(channel, slot));
        let private =
            [self.redrive(channel, "*"), self.retry(channel, "*", "*"), self.strikes(channel, "*", "*")];
        [self.subject(channel)].into_iter().chain(slots).chain(private).collect()
    }

    /// The durable consumer of one of `partitions` partitions.
    ///
    /// # Errors
    /// A name longer than the server takes.
    pub fn consumer(&self, channel: &str, group: &str, partition: u32, partitions: u32) -> Result<String> {
        let name = format!("{}{SEPARATOR}{group}", channel.replace('.', "~"));
        checked(if partitions > 1 { format!("{name}{SEPARATOR}{partition}") } else { name })
    }

    /// The subjects that a partition reads.
    pub fn filters(
        &self,
        channel: &str,
        group: Option<&str>,
        partition: u32,
        partitions: u32,
    ) -> Vec<String> {
        let slots =
            (0..KEY_SLOTS).filter(|slot| slot % partitions == partition).map(|slot| self.slot(channel, slot));
        let mut filters: Vec<_> = slots.collect();
        if partition == 0 {
            filters.push(self.subject(channel));
            filters.extend(group.map(|group| self.redrive(channel, group)));
        }
        filters
    }
}

/// Where the members of a group tell each other that they are there.
pub(crate) fn members_subject(stream: &str, group: &str) -> String {
    format!("_postrider.members.{stream}.{group}")
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
        "the server takes names of {MAX} bytes at most, channel and group together are longer; shorten one"
    );
    Err(Error::config("declare", message).with("name", name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_slot_is_read_by_exactly_one_partition() {
        let naming = Naming::default();
        for partitions in [1, 2, 4, 8, 16, 32, 64] {
            let all: Vec<_> = (0..partitions)
                .flat_map(|p| naming.filters("orders", Some("billing"), p, partitions))
                .collect();
            let unique: HashSet<_> = all.iter().collect();
            assert_eq!((all.len(), unique.len()), (66, 66));
        }
    }

    #[test]
    fn tenants_and_channels_never_share_a_name() {
        let (plain, tenant) = (Naming::default(), Naming::new(Some("a")).unwrap());
        assert_eq!(plain.stream("a.b").unwrap(), "a~b");
        assert_eq!(tenant.stream("b").unwrap(), "a--b");
        assert_ne!(plain.subject("a.b"), tenant.subject("b"));
        assert!(Naming::new(Some("a.b")).is_err());
    }

    #[test]
    fn names_lead_back_to_what_they_were_made_from() {
        for naming in [Naming::default(), Naming::new(Some("a")).unwrap()] {
            for channel in ["orders", "orders.billing.dlq", "a.b"] {
                let stream = naming.stream(channel).unwrap();
                assert_eq!(naming.channel(&stream).as_deref(), Some(channel));
                for partitions in [1, 8] {
                    let consumer = naming.consumer(channel, "billing", 0, partitions).unwrap();
                    assert_eq!(naming.group(channel, &consumer).as_deref(), Some("billing"));
                }
            }
        }
        // another tenant's, and somebody else's
        assert_eq!(Naming::default().channel("a--orders"), None);
        assert_eq!(Naming::new(Some("a")).unwrap().channel("ab--orders"), None);
        assert_eq!(Naming::default().group("orders", "ephemeral-1"), None);
        assert_eq!(Naming::default().group("orders", "orders--billing--x"), None);
    }

    #[test]
    fn names_are_bounded_from_both_sides() {
        let naming = Naming::default();
        assert!(naming.consumer(&"c".repeat(126), &"g".repeat(127), 0, 1).is_ok());
        assert!(naming.consumer(&"c".repeat(127), &"g".repeat(127), 0, 1).is_err());
    }
}
