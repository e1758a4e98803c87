//! Misbehaviour on request: a plan that follows from its seed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use postrider_core::{SeededSource, Source};

/// What goes wrong, and how often: chances from 0.0 to 1.0, drawn from a seed, so that a run can be repeated.
///
/// ```
/// use postrider_memory::FaultPlan;
/// let plan = FaultPlan::seeded(7).publish_fails(0.01).confirm_lost(0.01).duplicated(0.05);
/// # let _ = plan;
/// ```
#[derive(Debug)]
pub struct FaultPlan {
    source: SeededSource,
    fails: f64,
    lost: f64,
    duplicated: f64,
    disconnected: f64,
    delayed: (f64, Duration),
    rolled: AtomicU64,
}

/// What goes wrong with one publish.
#[allow(clippy::struct_excessive_bools, reason = "each is rolled by itself, and they may come together")]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Fault {
    pub(crate) fails: bool,
    pub(crate) lost: bool,
    pub(crate) duplicated: bool,
    pub(crate) disconnected: bool,
    pub(crate) delay: Option<Duration>,
}

impl FaultPlan {
    /// Nothing goes wrong yet.
    pub fn seeded(seed: u64) -> Self {
        Self {
            source: SeededSource::new(seed),
            fails: 0.0,
            lost: 0.0,
            duplicated: 0.0,
            disconnected: 0.0,
            delayed: (0.0, Duration::ZERO),
            rolled: AtomicU64::new(0),
        }
    }

    /// A publish is refused: failed, not stored.
    pub fn publish_fails(mut self, chance: f64) -> Self {
        self.fails = chance;
        self
    }

    /// A publish is stored, but its confirm is lost: unknown.
    pub fn confirm_lost(mut self, chance: f64) -> Self {
        self.lost = chance;
        self
    }

    /// A message is stored twice.
    pub fn duplicated(mut self, chance: f64) -> Self {
        self.duplicated = chance;
        self
    }

    /// A publish takes `delay` longer.
    pub fn delayed(mut self, chance: f64, delay: Duration) -> Self {
        self.delayed = (chance, delay);
        self
    }

    /// With a publish, every subscription loses its connection: claims are lost, what was out comes again.
    pub fn disconnected(mut self, chance: f64) -> Self {
        self.disconnected = chance;
        self
    }

    /// How many publishes were asked about.
    pub fn rolled(&self) -> u64 {
        self.rolled.load(Relaxed)
    }

    pub(crate) fn roll(&self) -> Fault {
        self.rolled.fetch_add(1, Relaxed);
        // always the same number of draws, so that one chance doesn't shift the others
        let happens = |chance: f64| (self.source.random() as f64 / u64::MAX as f64) < chance;
        Fault {
            fails: happens(self.fails),
            lost: happens(self.lost),
            duplicated: happens(self.duplicated),
            disconnected: happens(self.disconnected),
            delay: happens(self.delayed.0).then_some(self.delayed.1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_faults_and_chances_are_kept() {
        let rolls = |seed| {
            let plan = FaultPlan::seeded(seed).publish_fails(0.2).confirm_lost(0.1);
            (0..10_000).map(|_| plan.roll()).collect::<Vec<_>>()
        };
        assert_eq!(rolls(1), rolls(1));
        assert_ne!(rolls(1), rolls(2));
        let fails = rolls(3).iter().filter(|f| f.fails).count();
        assert!((1_800..2_200).contains(&fails), "{fails}");
        assert!(!rolls(3).iter().any(|f| f.duplicated));
    }
}
