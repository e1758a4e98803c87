//! Names: of channels, of groups, and of the slot that a key falls into. How a broker spells them is the adapter's.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::{Error, Result};

/// The longest name of a channel or group, in bytes.
pub const MAX_NAME: usize = 200;

/// Stands between channel, group and role where a broker needs one name for them; names can't contain it.
pub const SEPARATOR: &str = "--";

/// How many slots keys are spread over, on brokers that order by slot.
pub const KEY_SLOTS: u32 = 64;

/// Where a message goes: to a channel, or to one group of it alone. Names are borrowed, so that publishing to a literal doesn't
/// allocate; they are not checked until something is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address<'a> {
    channel: &'a str,
    group: Option<&'a str>,
}

impl<'a> Address<'a> {
    /// To one group of a channel alone: how a message comes back to those who failed it, and to nobody else.
    ///
    /// Only brokers with [`Capability::GroupAddress`](crate::Capability::GroupAddress) take it, and the group must exist.
    pub fn to_group(channel: &'a str, group: &'a str) -> Self {
        Self { channel, group: Some(group) }
    }

    /// The channel's name.
    pub fn channel(self) -> &'a str {
        self.channel
    }

    /// The group that alone gets the message; `None`: every group of the channel.
    pub fn group(self) -> Option<&'a str> {
        self.group
    }
}

impl<'a> From<&'a str> for Address<'a> {
    fn from(channel: &'a str) -> Self {
        Self { channel, group: None }
    }
}

impl<'a> From<&'a String> for Address<'a> {
    fn from(channel: &'a String) -> Self {
        Self { channel, group: None }
    }
}

impl<'a> From<&'a Channel> for Address<'a> {
    fn from(channel: &'a Channel) -> Self {
        Self { channel: &channel.0, group: None }
    }
}

macro_rules! names {
    ($(#[doc = $doc:expr])+ $name:ident, $what:literal, $check:ident) => {
        $(#[doc = $doc])+
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks the name.
            ///
            /// # Errors
            /// [`ErrorKind::Config`](crate::ErrorKind::Config), saying which character or length is wrong.
            pub fn new(name: impl Into<Arc<str>>) -> Result<Self> {
                let name = name.into();
                Self::check(&name)?;
                Ok(Self(name))
            }

            /// Checks a name that isn't to be kept, without an allocation.
            ///
            /// # Errors
            /// As [`new`](Self::new).
            pub fn check(name: &str) -> Result<()> {
                $check(name).map_err(|why| Error::config("name", format!(concat!("not a ", $what, ": {}"), why)).with("name", format!("{name:?}")))
            }

            /// The name itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

names! {
    /// A named stream of messages: segments of `[A-Za-z0-9_-]`, joined by dots, at most 200 bytes, without `--`.
    Channel, "channel name", check_channel
}

names! {
    /// One logical consumer: one segment of `[A-Za-z0-9_-]`, at most 200 bytes, without `--`.
    GroupName, "group name", check_segment
}

impl Channel {
    /// The dead-letter channel that a group on this channel has unless another is named: `channel.group.dlq`.
    ///
    /// # Errors
    /// When the name would be longer than 200 bytes.
    pub fn dead_letter(&self, group: &GroupName) -> Result<Self> {
        Self::new(format!("{self}.{group}.dlq"))
    }
}

fn check_channel(name: &str) -> std::result::Result<(), String> {
    if name.len() > MAX_NAME {
        return Err(format!("it has {} bytes, at most {MAX_NAME} are allowed", name.len()));
    }
    name.split('.').try_for_each(check_segment)
}

fn check_segment(segment: &str) -> std::result::Result<(), String> {
    // nearly every one, and names are checked for each message
    if !segment.is_empty()
        && segment.len() <= MAX_NAME
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    {
        return Ok(());
    }
    if segment.is_empty() {
        return Err("a segment is empty".into());
    }
    if segment.len() > MAX_NAME {
        return Err(format!("it has {} bytes, at most {MAX_NAME} are allowed", segment.len()));
    }
    if let Some(c) = segment.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-')) {
        return Err(format!(
            "{c:?} is not allowed, only letters, digits, `_`, `-` (and dots between a channel's segments)"
        ));
    }
    if segment.contains(SEPARATOR) || segment.starts_with('-') || segment.ends_with('-') {
        return Err("`--` separates channel, group and role, so a segment can't contain it, nor begin or end with `-`".into());
    }
    Ok(())
}

/// The slot of a key, `0..64`: murmur2, as Kafka's Java clients hash, so that every publisher agrees.
pub fn key_slot(key: &[u8]) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % KEY_SLOTS
}

/// Murmur2 with the seed of [Kafka's default partitioner]; a partition is `(hash & 0x7fff_ffff) % partitions`.
///
/// [Kafka's default partitioner]: https://kafka.apache.org/documentation/#producerconfigs_partitioner.class
pub fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c_u32 ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ (k >> 24)).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * i);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn murmur2_agrees_with_kafka() {
        // the values of Kafka's own test of its Utils.murmur2
        let known: [(&str, i32); 7] = [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
            ("", 275_646_681),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
    }

    #[test]
    fn names_are_checked_from_both_sides() {
        for good in ["a", "orders", "orders.billing.dlq", "A_b-c.9", &"x".repeat(MAX_NAME)] {
            assert!(Channel::new(good).is_ok(), "{good}");
        }
        for bad in
            ["", ".", "a..b", "a--b", "-a", "a-", "a b", "ä", "a/b", "~01", "a.*", &"x".repeat(MAX_NAME + 1)]
        {
            assert!(Channel::new(bad).is_err(), "{bad}");
        }
        assert!(GroupName::new("a.b").is_err());
    }
}
