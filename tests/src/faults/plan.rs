//! When something is harmed, what, and how: drawn from the seed before the run begins.

use std::time::Duration;

use postrider::{SeededSource, Source as _};

use super::Size;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Harm {
    /// SIGKILL to the broker.
    KillBroker,
    /// SIGKILL to the consumer that made the latest effect, at that point of its work.
    KillConsumer(Point),
    /// SIGSTOP to the broker, and SIGCONT.
    PauseBroker,
    /// Every connection is cut.
    Cut,
    /// A consumer drains and leaves, another comes.
    Replace,
    /// The dead-letter channel is closed for a while.
    CloseLetters,
}

/// Where a consumer dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    /// Wherever the signal finds it.
    Anywhere,
    /// A handler was called and has done nothing.
    BeforeEffect,
    /// The handler's effect is done, and it has not returned.
    AfterEffect,
}

impl Point {
    /// The word by which the consumer is told.
    pub(super) const fn word(self) -> Option<&'static str> {
        match self {
            Self::Anywhere => None,
            Self::BeforeEffect => Some("before-effect"),
            Self::AfterEffect => Some("after-effect"),
        }
    }
}

/// A harm to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) harm: Harm,
    /// It falls when so many messages are handled.
    pub(super) handled: u64,
    /// For how long the victim stays away.
    pub(super) away: Duration,
}

/// All harms of a run, spread over the time in which the publisher still has plenty to send, so that confirms and effects go
/// on after the last.
pub(super) fn plan(size: Size, ahead: u64, seed: u64) -> Vec<Planned> {
    const POINTS: [Point; 3] = [Point::Anywhere, Point::BeforeEffect, Point::AfterEffect];
    let source = SeededSource::new(seed);
    let below = |n: u64| source.random() % n;
    let consumers = (0..size.consumer_kills as usize).map(|n| Harm::KillConsumer(POINTS[n % POINTS.len()]));
    let mut harms: Vec<Harm> = [
        (Harm::KillBroker, size.broker_kills),
        (Harm::PauseBroker, size.pauses),
        (Harm::Cut, size.cuts),
        (Harm::Replace, size.replaced),
        (Harm::CloseLetters, size.outages),
    ]
    .into_iter()
    .flat_map(|(harm, times)| std::iter::repeat_n(harm, times as usize))
    .chain(consumers)
    .collect();
    for at in (1..harms.len()).rev() {
        harms.swap(at, below(at as u64 + 1) as usize);
    }
    let span = u64::from(size.messages).saturating_sub(ahead) * 9 / 10;
    let step = span / harms.len().max(1) as u64;
    harms
        .into_iter()
        .enumerate()
        .map(|(at, harm)| Planned {
            harm,
            handled: at as u64 * step + step / 4 + below((step / 2).max(1)),
            away: Duration::from_millis(100 + below(1_400)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_with_all_harms_while_much_is_to_be_sent() {
        for seed in 0..200 {
            let (one, two) = (plan(Size::SHORT, 4_000, seed), plan(Size::SHORT, 4_000, seed));
            assert_eq!(format!("{one:?}"), format!("{two:?}"));
            let count = |of: fn(Harm) -> bool| one.iter().filter(|planned| of(planned.harm)).count();
            assert_eq!(count(|harm| harm == Harm::KillBroker), 3);
            for point in [Point::Anywhere, Point::BeforeEffect, Point::AfterEffect] {
                assert_eq!(one.iter().filter(|planned| planned.harm == Harm::KillConsumer(point)).count(), 1);
            }
            assert_eq!(one.len(), Size::SHORT.harms() as usize);
            assert!(one.windows(2).all(|pair| pair[0].handled < pair[1].handled), "{one:?}");
            assert!(one.iter().all(|planned| planned.handled <= 14_400), "{one:?}");
        }
        let long = Size::long("nats");
        assert_ne!(format!("{:?}", plan(long, 4_000, 1)), format!("{:?}", plan(long, 4_000, 2)));
    }
}
