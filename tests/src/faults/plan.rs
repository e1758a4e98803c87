//! When something is killed, and what: drawn from the seed before the run begins.

use std::time::Duration;

use postrider::{SeededSource, Source as _};

use super::Size;

/// What is to be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    Broker,
    /// The consumer that made the latest effect.
    Consumer,
}

/// A kill to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) victim: Victim,
    /// It falls when so many messages are handled.
    pub(super) handled: u64,
    /// For how long the victim stays away.
    pub(super) away: Duration,
}

/// All kills of a run, spread over the time in which the publisher still has plenty to send, so that confirms and effects go
/// on after the last.
pub(super) fn plan(size: Size, ahead: u64, seed: u64) -> Vec<Planned> {
    let source = SeededSource::new(seed);
    let below = |n: u64| source.random() % n;
    let mut victims = vec![Victim::Broker; size.broker_kills as usize];
    victims.extend(vec![Victim::Consumer; size.consumer_kills as usize]);
    for at in (1..victims.len()).rev() {
        victims.swap(at, below(at as u64 + 1) as usize);
    }
    let span = u64::from(size.messages).saturating_sub(ahead) * 9 / 10;
    let step = span / victims.len().max(1) as u64;
    victims
        .into_iter()
        .enumerate()
        .map(|(at, victim)| Planned {
            victim,
            handled: at as u64 * step + step / 4 + below((step / 2).max(1)),
            away: Duration::from_millis(100 + below(1_400)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_schedule_with_all_kills_while_much_is_to_be_sent() {
        for seed in 0..200 {
            let (one, two) = (plan(Size::SHORT, 4_000, seed), plan(Size::SHORT, 4_000, seed));
            assert_eq!(format!("{one:?}"), format!("{two:?}"));
            assert_eq!(one.iter().filter(|kill| kill.victim == Victim::Broker).count(), 3);
            assert_eq!(one.len(), 6);
            assert!(one.windows(2).all(|pair| pair[0].handled < pair[1].handled), "{one:?}");
            assert!(one.iter().all(|kill| kill.handled <= 14_400), "{one:?}");
        }
        assert_ne!(format!("{:?}", plan(Size::LONG, 4_000, 1)), format!("{:?}", plan(Size::LONG, 4_000, 2)));
    }
}
