//! What stands in the file of each message, as bytes.

/// How a message ended, and until when that is remembered, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Completed { until_ms: u64 },
    DeadLettered { until_ms: u64, redrives: u32 },
}

/// The length of an entry: a kind, a time, a count.
pub(crate) const LENGTH: usize = 13;

const COMPLETED: u8 = 1;
const DEAD_LETTERED: u8 = 2;

impl Entry {
    pub(crate) fn until_ms(self) -> u64 {
        match self {
            Self::Completed { until_ms } | Self::DeadLettered { until_ms, .. } => until_ms,
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; LENGTH] {
        let (kind, redrives) = match self {
            Self::Completed { .. } => (COMPLETED, 0),
            Self::DeadLettered { redrives, .. } => (DEAD_LETTERED, redrives),
        };
        let mut bytes = [0; LENGTH];
        bytes[0] = kind;
        bytes[1..9].copy_from_slice(&self.until_ms().to_be_bytes());
        bytes[9..].copy_from_slice(&redrives.to_be_bytes());
        bytes
    }

    /// `None`: a kind that a later version writes.
    pub(crate) fn of(bytes: [u8; LENGTH]) -> Option<Self> {
        let until_ms = u64::from_be_bytes(bytes[1..9].try_into().ok()?);
        match bytes[0] {
            COMPLETED => Some(Self::Completed { until_ms }),
            DEAD_LETTERED => {
                let redrives = u32::from_be_bytes(bytes[9..].try_into().ok()?);
                Some(Self::DeadLettered { until_ms, redrives })
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_comes_back_as_it_was(until_ms in any::<u64>(), redrives in any::<u32>(), dead in any::<bool>()) {
            let entry = if dead { Entry::DeadLettered { until_ms, redrives } } else { Entry::Completed { until_ms } };
            prop_assert_eq!(Entry::of(entry.to_bytes()), Some(entry));
        }
    }

    #[test]
    fn a_kind_that_is_none_is_no_entry() {
        let mut bytes = Entry::Completed { until_ms: 7 }.to_bytes();
        bytes[0] = 9;
        assert_eq!(Entry::of(bytes), None);
    }
}
