//! Order: the first effects of a key come in its order, one at a time. Repetitions are looked at elsewhere.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{Bounds, Done};
use crate::history::{Hold, Id};

/// A hold of a process; other processes count their holds for themselves.
type Holder<'a> = (&'a str, Hold);

/// What is known of a key as its effects are gone through in time.
#[derive(Default)]
struct Key<'a> {
    /// The highest number handled so far.
    highest: Option<u32>,
    seen: HashSet<u32>,
    holder: Option<Holder<'a>>,
    /// Holders that another has followed, and when.
    followed: HashMap<Holder<'a>, u64>,
    /// When the last effect of the present holder was done.
    ended: u64,
}

/// The inverted messages, and those that a member made which had been followed by another already.
pub(super) fn check(done: &[Done<'_>], bounds: &Bounds) -> (BTreeSet<Id>, BTreeSet<Id>) {
    let (mut inverted, mut overlap) = (BTreeSet::new(), BTreeSet::new());
    let mut keys: BTreeMap<u32, Key<'_>> = BTreeMap::new();
    for effect in done {
        let Some(hold) = effect.hold else { continue };
        let (key, holder) = (keys.entry(effect.id.key).or_default(), (effect.process, hold));
        if let Some(followed) = key.followed.get(&holder) {
            // cut off, and it didn't know yet: allowed for as long as a claim may outlive its member's reach
            let late = effect.at.saturating_sub(*followed);
            let list = if u128::from(late) <= bounds.claim_timeout.as_nanos() {
                &mut overlap
            } else {
                &mut inverted
            };
            list.insert(effect.id);
            key.seen.insert(effect.id.number);
            continue;
        }
        if key.holder == Some(holder) {
            if effect.started.is_some_and(|started| started < key.ended) {
                // two of one key at once
                inverted.insert(effect.id);
            }
        } else if let Some(before) = key.holder.replace(holder) {
            key.followed.insert(before, effect.at);
        }
        key.ended = effect.at;
        if key.seen.insert(effect.id.number) {
            if key.highest.is_some_and(|highest| highest > effect.id.number) {
                inverted.insert(effect.id);
            }
            key.highest = key.highest.max(Some(effect.id.number));
        }
    }
    (inverted, overlap)
}
