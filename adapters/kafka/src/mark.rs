//! What is written beside a committed offset: which messages above it are settled already, and what is known of holders that ended
//! without leaving. The format, not when it is written.
//!
//! `postrider/1 a=BITS s=STARTS:REACH k=OFFSET:STRIKES,… n=COUNT`, each field where there is anything to say. BITS, in base64 without
//! padding, stand for the offsets from the committed one on, the lowest bit of the first byte for the committed one itself. So many
//! STARTS in a row didn't end in good order and didn't come past REACH. A message at OFFSET was begun alone and not ended so many
//! times. The topic had COUNT partitions when the group began, so those from that number on are newer than the group. Other fields may
//! follow; unknown ones are passed over.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

const VERSION: &str = "postrider/1";

/// The broker takes 4,096 bytes unless told otherwise (`offset.metadata.max.bytes`). Offsets beyond what fits come again.
const MOST_BITS: u64 = 8 * 2_700;
/// The most messages of which it is kept that they were begun alone: each takes 32 bytes at most.
pub(crate) const MOST_STRIKES: usize = 8;

/// What is known of the holders of a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Starts {
    /// How many in a row didn't end in good order, the present one included, without a change of all that was out.
    pub(crate) count: u32,
    /// Below it lies what was handed out by them.
    pub(crate) reach: u64,
    /// Messages that were begun alone and not ended, and how often.
    pub(crate) strikes: BTreeMap<u64, u32>,
}

/// What is written down, as it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) ahead: Vec<u64>,
    pub(crate) starts: Starts,
    /// How many partitions the topic had when the group began, where it is known.
    pub(crate) initial_partitions: Option<u32>,
}

/// The text for a position, what is settled above it, ascending, its holders, and the topic's partitions when the group began; empty when
/// there is nothing to say.
pub(crate) fn write(
    position: u64,
    settled: impl Iterator<Item = u64>,
    starts: &Starts,
    initial_partitions: Option<u32>,
) -> String {
    let mut bits = Vec::new();
    for offset in settled {
        let Some(at) = offset.checked_sub(position).filter(|at| *at < MOST_BITS) else {
            break;
        };
        let byte = (at / 8) as usize;
        if bits.len() <= byte {
            bits.resize(byte + 1, 0_u8);
        }
        bits[byte] |= 1 << (at % 8);
    }
    let mut text = String::from(VERSION);
    if !bits.is_empty() {
        text.push_str(" a=");
        STANDARD_NO_PAD.encode_string(bits, &mut text);
    }
    if starts.count > 0 {
        // writing to a string can't fail
        let _ = write!(text, " s={}:{}", starts.count, starts.reach);
    }
    for (n, (offset, strikes)) in starts.strikes.iter().take(MOST_STRIKES).enumerate() {
        let _ = write!(text, "{}{offset}:{strikes}", if n == 0 { " k=" } else { "," });
    }
    if let Some(count) = initial_partitions {
        let _ = write!(text, " n={count}");
    }
    if text.len() == VERSION.len() { String::new() } else { text }
}

/// What was written beside a position. Text that isn't ours says nothing.
pub(crate) fn read(position: u64, text: &str) -> Mark {
    let mut fields = text.split(' ');
    if fields.next() != Some(VERSION) {
        return Mark::default();
    }
    let mut mark = Mark::default();
    for field in fields {
        if let Some(bits) = field.strip_prefix("a=").and_then(|bits| STANDARD_NO_PAD.decode(bits).ok()) {
            let set = |at: &u64| bits[(at / 8) as usize] & (1 << (at % 8)) != 0;
            let all = (0..bits.len() as u64 * 8).filter(set);
            mark.ahead = all.filter_map(|at| position.checked_add(at)).collect();
        } else if let Some((count, reach)) = field.strip_prefix("s=").and_then(pair) {
            (mark.starts.count, mark.starts.reach) = (u32::try_from(count).unwrap_or(u32::MAX), reach);
        } else if let Some(strikes) = field.strip_prefix("k=") {
            let strikes = strikes.split(',').filter_map(pair).take(MOST_STRIKES);
            let strikes = strikes.map(|(offset, n)| (offset, u32::try_from(n).unwrap_or(u32::MAX)));
            mark.starts.strikes = strikes.filter(|(offset, _)| *offset >= position).collect();
        } else if let Some(count) = field.strip_prefix("n=") {
            mark.initial_partitions = count.parse().ok();
        }
    }
    mark
}

fn pair(text: &str) -> Option<(u64, u64)> {
    let (a, b) = text.split_once(':')?;
    Some((a.parse().ok()?, b.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            position in 0_u64..1 << 60,
            above in prop::collection::btree_set(0_u64..5_000, 0..200),
            (count, reach) in prop_oneof![Just((0, 0)), (1..u32::MAX, any::<u64>())],
            struck in prop::collection::btree_map(0_u64..5_000, any::<u32>(), 0..=MOST_STRIKES),
            initial_partitions in prop::option::of(any::<u32>()),
        ) {
            let ahead: Vec<_> = above.iter().map(|offset| position + offset).collect();
            let strikes = struck.into_iter().map(|(offset, n)| (position + offset, n)).collect();
            let starts = Starts { count, reach, strikes };
            let text = write(position, ahead.iter().copied(), &starts, initial_partitions);
            prop_assert!(text.len() < 4_096);
            prop_assert_eq!(read(position, &text), Mark { ahead, starts, initial_partitions });
        }

        #[test]
        fn any_text_can_be_read(position in any::<u64>(), text in "\\PC{0,40}", bits in "postrider/1 [a-z]=[A-Za-z0-9+/:,]{0,20}") {
            read(position, &text);
            read(position, &bits);
        }
    }

    #[test]
    fn the_text_of_older_versions_says_nothing_of_the_group_s_beginning() {
        let old = read(7, "postrider/1 a=Ag s=2:30 k=9:1");
        assert_eq!((&*old.ahead, old.starts.count, old.initial_partitions), (&[8][..], 2, None));
        let new = read(7, "postrider/1 a=Ag s=2:30 k=9:1 n=4");
        assert_eq!((new.ahead, new.starts), (old.ahead, old.starts));
        assert_eq!(new.initial_partitions, Some(4));
        assert_eq!(write(7, std::iter::empty(), &Starts::default(), Some(4)), "postrider/1 n=4");
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let all: BTreeSet<u64> = (1..40_000).collect();
        let strikes = (0..20).map(|n| (u64::MAX - n, u32::MAX)).collect();
        let starts = Starts { count: u32::MAX, reach: u64::MAX, strikes };
        let text = write(0, all.iter().copied(), &starts, Some(u32::MAX));
        assert!(text.len() < 4_096, "{}", text.len());
        assert_eq!(read(0, &text).ahead, (1..MOST_BITS).collect::<Vec<_>>());
        assert_eq!(read(0, &text).starts.strikes.len(), MOST_STRIKES);
        assert_eq!(read(0, &text).initial_partitions, Some(u32::MAX));
        assert_eq!(write(7, std::iter::empty(), &Starts::default(), None), "");
        assert_eq!(read(7, "somebody else's"), Mark::default());
    }
}
