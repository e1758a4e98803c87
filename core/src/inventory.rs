//! What stands at a broker: its channels, and the groups that read them. Making them is `declare`'s, changing them is nobody's.

use serde::Serialize;

use crate::address::{Channel, GroupName};

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All channels and groups. Only brokers with [`Capability::Inventory`](crate::Capability::Inventory) can list them.
    Everything,
    /// These channels, each with these groups. Every broker can tell whether they are there.
    These(Vec<(Channel, Vec<GroupName>)>),
}

/// The channels that were found, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Inventory {
    /// Those of the tenant of the connection. Without a tenant, what belongs to others is here as well, by its own name.
    pub channels: Vec<ChannelEntry>,
}

/// A channel as it stands at the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ChannelEntry {
    /// The channel's name; that of the topic, stream or exchange where `foreign`.
    pub channel: String,
    /// Its name is not one that a channel of this connection has.
    pub foreign: bool,
    /// How many messages the channel itself keeps; `None` where it keeps none of its own or the broker doesn't tell.
    pub messages: Option<u64>,
    /// Into how many partitions the channel is split, where it is.
    pub partitions: Option<u32>,
    /// Those who read it, by name.
    pub groups: Vec<GroupEntry>,
}

/// A group as it stands at the broker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GroupEntry {
    /// The group's name.
    pub group: String,
    /// How many messages it has still to settle, where the broker tells. Under way ones may be missing from it where a broker
    /// counts them apart and doesn't tell.
    pub lag: Option<u64>,
    /// How many members it has now, where the broker tells.
    pub members: Option<u32>,
    /// Into how many partitions the group is split, where that is the group's.
    pub partitions: Option<u32>,
}

impl Inventory {
    /// These channels, put into the order of their names.
    pub fn new(channels: impl IntoIterator<Item = ChannelEntry>) -> Self {
        let mut channels: Vec<_> = channels.into_iter().collect();
        channels.sort_by(|a, b| (a.foreign, &a.channel).cmp(&(b.foreign, &b.channel)));
        for entry in &mut channels {
            entry.groups.sort_by(|a, b| a.group.cmp(&b.group));
        }
        Self { channels }
    }

    /// The channel of that name, if it was found.
    pub fn channel(&self, name: &str) -> Option<&ChannelEntry> {
        self.channels.iter().find(|entry| !entry.foreign && entry.channel == name)
    }
}

impl ChannelEntry {
    /// A channel of which nothing more is known yet.
    pub fn new(channel: impl Into<String>) -> Self {
        Self { channel: channel.into(), ..Self::default() }
    }

    /// Something by a name that isn't a channel's.
    pub fn foreign(name: impl Into<String>) -> Self {
        Self { foreign: true, ..Self::new(name) }
    }

    /// The group of that name, if it was found.
    pub fn group(&self, name: &str) -> Option<&GroupEntry> {
        self.groups.iter().find(|entry| entry.group == name)
    }
}

impl GroupEntry {
    /// A group of which nothing more is known yet.
    pub fn new(group: impl Into<String>) -> Self {
        Self { group: group.into(), ..Self::default() }
    }
}

/// What became of one thing that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Grade {
    /// It is as it should be.
    Ok,
    /// It works, but something is worth knowing.
    Warning,
    /// It doesn't work.
    Failed,
}

/// One thing that was looked at, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at, in a word or two.
    pub what: String,
    /// How it is.
    pub grade: Grade,
    /// What was found.
    pub found: String,
    /// What to do next, where something is to be done.
    pub next: Option<String>,
}

impl Finding {
    /// It is as it should be.
    pub fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), grade: Grade::Ok, found: found.into(), next: None }
    }

    /// It works, but something is worth knowing.
    pub fn warning(what: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { grade: Grade::Warning, next: Some(next.into()), ..Self::ok(what, found) }
    }

    /// It doesn't work.
    pub fn failed(what: impl Into<String>, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { grade: Grade::Failed, next: Some(next.into()), ..Self::ok(what, found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_come_by_name_and_foreign_ones_last() {
        let all = ["b", "a"].map(ChannelEntry::new).into_iter().chain([ChannelEntry::foreign("0")]);
        let inventory = Inventory::new(all);
        let names: Vec<_> = inventory.channels.iter().map(|entry| &*entry.channel).collect();
        assert_eq!(names, ["a", "b", "0"]);
        assert!(inventory.channel("a").is_some() && inventory.channel("0").is_none());
    }
}
