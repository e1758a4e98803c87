//! Which messages of a log are for one group alone, and which of those have to wait for their time. The log has them like any other,
//! so they count towards its bound.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::group::GroupKey;

/// The messages that aren't for everybody, by position.
#[derive(Debug, Default)]
pub(crate) struct Addressed(BTreeMap<u64, To>);

#[derive(Debug)]
struct To {
    group: Arc<str>,
    early: bool,
}

/// Whether a group may have a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Now,
    /// It is the group's, but its time hasn't come.
    Later,
    /// It is another group's.
    Never,
}

impl Addressed {
    pub(crate) fn add(&mut self, position: u64, group: &str, early: bool) {
        self.0.insert(position, To { group: group.into(), early });
    }

    /// Its time has come.
    pub(crate) fn due(&mut self, position: u64) {
        if let Some(to) = self.0.get_mut(&position) {
            to.early = false;
        }
    }

    pub(crate) fn turn(&self, position: u64, group: &GroupKey) -> Turn {
        match self.0.get(&position) {
            Some(to) if !matches!(group, GroupKey::Named(name) if *name == to.group) => Turn::Never,
            Some(to) if to.early => Turn::Later,
            None | Some(_) => Turn::Now,
        }
    }

    /// Whether it is for everybody.
    pub(crate) fn is_free(&self, position: u64) -> bool {
        !self.0.contains_key(&position)
    }

    /// How many from `position` on are other groups'.
    pub(crate) fn others(&self, position: u64, group: &GroupKey) -> u64 {
        let from = self.0.range(position..).map(|(position, _)| *position);
        from.filter(|position| self.turn(*position, group) == Turn::Never).count() as u64
    }

    /// What lies before `base` is gone.
    pub(crate) fn forget_before(&mut self, base: u64) {
        while self.0.first_key_value().is_some_and(|(position, _)| *position < base) {
            self.0.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_groups_alone_and_not_before_its_time() {
        let named = |name: &str| GroupKey::Named(name.into());
        let mut addressed = Addressed::default();
        addressed.add(7, "billing", true);
        assert_eq!(addressed.turn(6, &named("billing")), Turn::Now);
        assert_eq!(addressed.turn(7, &named("billing")), Turn::Later);
        for other in [named("shipping"), GroupKey::Ephemeral(1)] {
            assert_eq!(addressed.turn(7, &other), Turn::Never);
        }
        addressed.due(7);
        assert_eq!(addressed.turn(7, &named("billing")), Turn::Now);
        addressed.forget_before(7);
        assert_eq!(addressed.turn(7, &named("shipping")), Turn::Never);
        addressed.forget_before(8);
        assert_eq!(addressed.turn(7, &named("shipping")), Turn::Now);
    }
}
