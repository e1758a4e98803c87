//! Things by numbers that rise: delivery tags, offsets, sequences of a stream.

use std::collections::VecDeque;
use std::fmt;

/// How many empty places there may be beside as many as there are full ones.
const SPARE: usize = 128;

/// A map whose keys are added in rising order, or nearly so, such as a broker's delivery tags or offsets. They are mostly dense, so what is
/// looked for mostly stands where it is to be expected; where they aren't, it is searched for.
pub struct Rising<T> {
    /// The first and the last have something.
    entries: VecDeque<(u64, Option<T>)>,
    len: usize,
}

impl<T> Default for Rising<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), len: 0 }
    }
}

impl<T: fmt::Debug> fmt::Debug for Rising<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T> Rising<T> {
    fn find(&self, key: u64) -> Option<usize> {
        // new ones are larger than all, and are looked for as well before they are added
        if key > self.entries.back()?.0 {
            return None;
        }
        let expected = key.checked_sub(self.entries.front()?.0)? as usize;
        if self.entries.get(expected).is_some_and(|(found, _)| *found == key) {
            return Some(expected);
        }
        self.entries.binary_search_by_key(&key, |(key, _)| *key).ok()
    }

    /// Adds what belongs to a key that is larger than all others; one that isn't is ignored.
    pub fn push(&mut self, key: u64, thing: T) {
        if self.entries.back().is_none_or(|(last, _)| *last < key) {
            self.entries.push_back((key, Some(thing)));
            self.len += 1;
        }
    }

    /// Adds what belongs to a key, wherever that stands among the others; answers what belonged to it before. At the end it costs next to
    /// nothing, elsewhere all behind it, or before it, are moved.
    pub fn insert(&mut self, key: u64, thing: T) -> Option<T> {
        if self.entries.back().is_none_or(|(last, _)| *last < key) {
            self.push(key, thing);
            return None;
        }
        let before = match self.entries.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => self.entries[at].1.replace(thing),
            Err(at) => {
                self.entries.insert(at, (key, Some(thing)));
                None
            }
        };
        self.len += usize::from(before.is_none());
        before
    }

    /// What belongs to the key.
    pub fn get(&self, key: u64) -> Option<&T> {
        self.entries.get(self.find(key)?)?.1.as_ref()
    }

    /// What belongs to the key, to be changed.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let index = self.find(key)?;
        self.entries.get_mut(index)?.1.as_mut()
    }

    /// Takes out what belongs to the key.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        let index = self.find(key)?;
        let thing = if index == 0 {
            // the oldest mostly goes first, so it needn't leave an empty place
            self.entries.pop_front()?.1?
        } else {
            self.entries.get_mut(index)?.1.take()?
        };
        self.len -= 1;
        while self.entries.front().is_some_and(|(_, thing)| thing.is_none()) {
            self.entries.pop_front();
        }
        while self.entries.back().is_some_and(|(_, thing)| thing.is_none()) {
            self.entries.pop_back();
        }
        // one that stays for long must not keep a place for each that came and went behind it
        if self.entries.len() > 2 * self.len + SPARE {
            self.entries.retain(|(_, thing)| thing.is_some());
        }
        Some(thing)
    }

    /// Takes out everything.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The smallest key with what belongs to it.
    pub fn first(&self) -> Option<(u64, &T)> {
        self.iter().next()
    }

    /// All, by rising keys.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.entries.iter().filter_map(|(key, thing)| Some((*key, thing.as_ref()?)))
    }

    /// All without their keys, in the order of these.
    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.entries.into_iter().filter_map(|(_, thing)| thing)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_that_stays_holds_up_no_memory() {
        let mut rising = Rising::default();
        rising.push(0, 0);
        let mut most = 0;
        for key in 1..100_000_u64 {
            rising.push(key, key);
            if key > 8 {
                assert_eq!(rising.remove(key - 8), Some(key - 8));
            }
            most = most.max(rising.entries.len());
        }
        assert_eq!((rising.get(0), rising.len()), (Some(&0), 9));
        assert!(most <= 2 * 10 + SPARE, "{most} places for 10");
    }

    proptest! {
        /// It is a map whose keys are mostly added at the end.
        #[test]
        fn they_are_found_wherever_they_stand(steps in prop::collection::vec((1_u64..4, any::<prop::sample::Index>(), 0..3), 0..600)) {
            let (mut rising, mut map, mut last) = (Rising::default(), BTreeMap::new(), 0);
            for (gap, at, what) in steps {
                let key = at.index(last as usize + 1) as u64;
                if what == 0 && last > 0 {
                    prop_assert_eq!(rising.get(key), map.get(&key));
                    prop_assert_eq!(rising.remove(key), map.remove(&key));
                } else if what == 1 {
                    prop_assert_eq!(rising.insert(key, key), map.insert(key, key));
                } else {
                    last += gap;
                    rising.push(last, last);
                    map.insert(last, last);
                }
                prop_assert_eq!(rising.len(), map.len());
                prop_assert_eq!(rising.is_empty(), map.is_empty());
                prop_assert!(rising.iter().map(|(key, _)| key).eq(map.keys().copied()));
                prop_assert_eq!(rising.first().map(|(key, _)| key), map.keys().next().copied());
                if let Some(thing) = rising.get_mut(last) {
                    prop_assert_eq!(*thing, last);
                }
            }
            prop_assert!(rising.into_values().eq(map.into_values()));
        }
    }
}
