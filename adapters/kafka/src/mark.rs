//! What is written beside a committed offset: which messages above it are settled already. The format, not when it is written.
//!
//! `postrider/1 a=BITS`: the bits, in base64 without padding, stand for the offsets from the committed one on, the lowest bit of
//! the first byte for the committed one itself. Other fields may follow; unknown ones are passed over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

const VERSION: &str = "postrider/1";

/// The broker takes 4,096 bytes unless told otherwise (`offset.metadata.max.bytes`). Offsets beyond what fits come again.
const MOST_BITS: u64 = 8 * 2_880;

/// The text for a position and what is settled above it, ascending; empty when there is nothing to say.
pub(crate) fn write(position: u64, settled: impl Iterator<Item = u64>) -> String {
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
    if bits.is_empty() {
        return String::new();
    }
    format!("{VERSION} a={}", STANDARD_NO_PAD.encode(bits))
}

/// What is settled above a position. Text that isn't ours says nothing.
pub(crate) fn read(position: u64, text: &str) -> Vec<u64> {
    let mut fields = text.split(' ');
    if fields.next() != Some(VERSION) {
        return Vec::new();
    }
    let bits = fields.find_map(|field| STANDARD_NO_PAD.decode(field.strip_prefix("a=")?).ok());
    let bits = bits.unwrap_or_default();
    let set = |at: &u64| bits[(at / 8) as usize] & (1 << (at % 8)) != 0;
    (0..bits.len() as u64 * 8).filter(set).filter_map(|at| position.checked_add(at)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(position in 0_u64..1 << 60, above in prop::collection::btree_set(0_u64..5_000, 0..200)) {
            let settled: Vec<_> = above.iter().map(|offset| position + offset).collect();
            let text = write(position, settled.iter().copied());
            prop_assert!(text.len() < 4_096);
            prop_assert_eq!(read(position, &text), settled);
        }

        #[test]
        fn any_text_can_be_read(position in any::<u64>(), text in "\\PC{0,40}", bits in "postrider/1 [a-z]=[A-Za-z0-9+/]{0,20}") {
            read(position, &text);
            read(position, &bits);
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out() {
        let all: BTreeSet<u64> = (1..40_000).collect();
        let text = write(0, all.iter().copied());
        assert!(text.len() < 4_096);
        assert_eq!(read(0, &text), (1..MOST_BITS).collect::<Vec<_>>());
        assert_eq!(write(7, std::iter::empty()), "");
        assert!(read(7, "somebody else's").is_empty());
    }
}
