//! How channels and groups are spelt on Kafka. One place for all of it.

use postrider_core::{Error, GroupName, Result, SEPARATOR};

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
    fn names_are_bounded_from_both_sides() {
        let naming = Naming::new(Some(&"t".repeat(47))).unwrap();
        assert!(naming.topic(&"c".repeat(200)).is_ok());
        let naming = Naming::new(Some(&"t".repeat(48))).unwrap();
        assert!(naming.topic(&"c".repeat(200)).is_err());
    }
}
