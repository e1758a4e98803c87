//! Things by their delivery tag. Tags of a channel rise by one, so most of what is looked for stands where it is to be expected.

use std::collections::VecDeque;

/// Rising tags, each with what belongs to it until that is taken out.
#[derive(Debug)]
pub(crate) struct Tags<T> {
    /// The first and the last have something.
    entries: VecDeque<(u64, Option<T>)>,
    len: usize,
}

impl<T> Default for Tags<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), len: 0 }
    }
}

impl<T> Tags<T> {
    fn find(&self, tag: u64) -> Option<usize> {
        let expected = tag.checked_sub(self.entries.front()?.0)? as usize;
        if self.entries.get(expected).is_some_and(|(found, _)| *found == tag) {
            return Some(expected);
        }
        self.entries.binary_search_by_key(&tag, |(tag, _)| *tag).ok()
    }

    /// Adds a tag that is larger than all others. The broker gives none twice.
    pub(crate) fn push(&mut self, tag: u64, thing: T) {
        if self.entries.back().is_none_or(|(last, _)| *last < tag) {
            self.entries.push_back((tag, Some(thing)));
            self.len += 1;
        }
    }

    pub(crate) fn get(&self, tag: u64) -> Option<&T> {
        self.entries.get(self.find(tag)?)?.1.as_ref()
    }

    pub(crate) fn get_mut(&mut self, tag: u64) -> Option<&mut T> {
        let index = self.find(tag)?;
        self.entries.get_mut(index)?.1.as_mut()
    }

    /// Takes out what belongs to the tag.
    pub(crate) fn remove(&mut self, tag: u64) -> Option<T> {
        let index = self.find(tag)?;
        let thing = self.entries.get_mut(index)?.1.take()?;
        self.len -= 1;
        while self.entries.front().is_some_and(|(_, thing)| thing.is_none()) {
            self.entries.pop_front();
        }
        while self.entries.back().is_some_and(|(_, thing)| thing.is_none()) {
            self.entries.pop_back();
        }
        Some(thing)
    }

    /// The first tag with what belongs to it.
    pub(crate) fn first(&self) -> Option<(u64, &T)> {
        self.iter().next()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.entries.iter().filter_map(|(tag, thing)| Some((*tag, thing.as_ref()?)))
    }

    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.entries.into_iter().filter_map(|(_, thing)| thing)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It is a map whose keys are only ever added at the end.
        #[test]
        fn they_are_found_wherever_they_stand(steps in prop::collection::vec((1_u64..4, any::<prop::sample::Index>(), any::<bool>()), 0..80)) {
            let (mut tags, mut map, mut last) = (Tags::default(), BTreeMap::new(), 0);
            for (gap, at, remove) in steps {
                if remove && last > 0 {
                    let tag = at.index(last as usize + 1) as u64;
                    prop_assert_eq!(tags.get(tag), map.get(&tag));
                    prop_assert_eq!(tags.remove(tag), map.remove(&tag));
                } else {
                    last += gap;
                    tags.push(last, last);
                    map.insert(last, last);
                }
                prop_assert_eq!(tags.len(), map.len());
                prop_assert_eq!(tags.is_empty(), map.is_empty());
                prop_assert!(tags.iter().map(|(tag, _)| tag).eq(map.keys().copied()));
                prop_assert_eq!(tags.first().map(|(tag, _)| tag), map.keys().next().copied());
                if let Some(thing) = tags.get_mut(last) {
                    prop_assert_eq!(*thing, last);
                }
            }
            prop_assert!(tags.into_values().eq(map.into_values()));
        }
    }
}
