//! How channels and groups are spelt on Kafka. One place for all of it.

use postrider_core::{Channel, Error, GroupName, Result, SEPARATOR};

/// The longest name of a topic, in bytes. See `Topic.validate` of Kafka.
const MAX: usize = 249;

/// Names at the broker, for one tenant.
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

    /// The topic of a channel: its own name, behind the tenant's.
    ///
    /// # Errors
    /// A name longer than Kafka takes.
    pub fn topic(&self, channel: &str) -> Result<String> {
        checked(match &self.tenant {
            Some(tenant) => format!("{tenant}{SEPARATOR}{channel}"),
            None => channel.into(),
        })
    }

    /// The topic of what is one group's alone, and the `group.id` by which its members read it.
    ///
    /// # Errors
    /// A name longer than Kafka takes.
    pub fn redrive(&self, channel: &str, group: &str) -> Result<String> {
        checked(format!("{}{SEPARATOR}redrive", self.group(channel, group)?))
    }

    /// The channel that has this topic; `None` where the name is no channel's of this tenant.
    pub fn channel(&self, topic: &str) -> Option<Channel> {
        let name = match &self.tenant {
            Some(tenant) => topic.strip_prefix(&**tenant)?.strip_prefix(SEPARATOR)?,
            None => topic,
        };
        Channel::new(name).ok()
    }

    /// The channel and the group whose `group.id` this is; `None` where it is no group's of this tenant.
    pub fn group_of(&self, id: &str) -> Option<(Channel, GroupName)> {
        let (topic, group) = id.rsplit_once(SEPARATOR)?;
        Some((self.channel(topic)?, GroupName::new(group).ok()?))
    }

    /// The dead-letter channel beside whose topic this one says what is closed; `None` where it is no such topic of this tenant.
    pub fn closed_beside(&self, topic: &str) -> Option<Channel> {
        self.channel(topic.strip_suffix("closed")?.strip_suffix(SEPARATOR)?)
    }

    /// The channel and the group whose own topic this is; `None` where it is no group's of this tenant.
    pub fn redriven_to(&self, topic: &str) -> Option<(Channel, GroupName)> {
        self.group_of(topic.strip_suffix("redrive")?.strip_suffix(SEPARATOR)?)
    }

    /// The compacted topic beside a dead-letter channel's, which says what of it is closed.
    ///
    /// # Errors
    /// A name longer than Kafka takes.
    pub fn closed(&self, channel: &str) -> Result<String> {
        checked(format!("{}{SEPARATOR}closed", self.topic(channel)?))
    }

    /// The `group.id` of a group on a channel.
    ///
    /// # Errors
    /// A topic's name longer than Kafka takes.
    pub fn group(&self, channel: &str, group: &str) -> Result<String> {
        Ok(format!("{}{SEPARATOR}{group}", self.topic(channel)?))
    }
}

fn checked(name: String) -> Result<String> {
    if name.len() <= MAX {
        return Ok(name);
    }
    let message = format!(
        "Kafka takes topics of {MAX} bytes at most; tenant, channel and group together are longer; shorten one"
    );
    Err(Error::config("declare", message).with("topic", name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_and_channels_never_share_a_name() {
        let (plain, tenant) = (Naming::default(), Naming::new(Some("a")).unwrap());
        assert_eq!(plain.topic("a.b").unwrap(), "a.b");
        assert_eq!(tenant.topic("b").unwrap(), "a--b");
        assert_eq!(tenant.group("b", "g").unwrap(), "a--b--g");
        assert!(Naming::new(Some("a.b")).is_err());
    }

    #[test]
    fn names_lead_back_to_what_they_were_made_from() {
        for naming in [Naming::default(), Naming::new(Some("a")).unwrap()] {
            for channel in ["orders", "orders.billing.dlq"] {
                let of = |found: Option<(Channel, GroupName)>| found.map(|(c, g)| format!("{c}/{g}"));
                let expected = Some(format!("{channel}/billing"));
                assert_eq!(naming.channel(&naming.topic(channel).unwrap()).as_deref(), Some(channel));
                assert_eq!(of(naming.group_of(&naming.group(channel, "billing").unwrap())), expected);
                let closed = naming.closed_beside(&naming.closed(channel).unwrap());
                assert_eq!(closed.as_deref(), Some(channel));
                assert_eq!(of(naming.redriven_to(&naming.redrive(channel, "billing").unwrap())), expected);
            }
        }
        // another tenant's, and somebody else's
        assert_eq!(Naming::default().channel("a--orders"), None);
        assert_eq!(Naming::new(Some("a")).unwrap().channel("orders"), None);
        assert_eq!(Naming::default().group_of("console-consumer-1"), None);
    }

    #[test]
    fn names_are_bounded_from_both_sides() {
        let naming = Naming::new(Some(&"t".repeat(47))).unwrap();
        assert!(naming.topic(&"c".repeat(200)).is_ok());
        let naming = Naming::new(Some(&"t".repeat(48))).unwrap();
        assert!(naming.topic(&"c".repeat(200)).is_err());
    }
}
