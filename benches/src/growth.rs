//! Growth: what a message costs postrider's process as one thing grows and the rest stays. Which curves there are, over what, and
//! what they are held to.

mod drain;
pub(crate) mod figures;
mod gate;
mod load;
mod measure;
mod parked;
pub(crate) mod plot;
pub(crate) mod point;
pub(crate) mod table;

use anyhow::{Result, ensure};
use clap::ValueEnum;

use crate::case::{Kind, Subject};

pub(crate) use measure::measure;

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Curve {
    /// Keys of the messages, in whose order they are handled
    Keys,
    /// Routes of one service, each with a channel of its own
    Routes,
    /// Messages that are unsettled at once, each in a handler that waits
    InFlight,
    /// Headers of the user's on each message
    Headers,
    /// Messages that stand at the broker before they are read
    Backlog,
    /// Workers of a route whose handler computes for 5 µs
    Workers,
}

/// What the quotient of a curve's ends may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
    /// It is shown, and held to nothing.
    None,
}

/// How much a growth is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
}

impl Curve {
    pub(crate) const ALL: [Self; 6] =
        [Self::Keys, Self::Routes, Self::InFlight, Self::Headers, Self::Backlog, Self::Workers];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Routes => "routes",
            Self::InFlight => "in-flight",
            Self::Headers => "headers",
            Self::Backlog => "backlog",
            Self::Workers => "workers",
        }
    }

    pub(crate) fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|curve| curve.name() == name)
    }

    /// What its points are counted in.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Keys => "keys",
            Self::Routes => "routes",
            Self::InFlight => "messages in flight",
            Self::Headers => "headers",
            Self::Backlog => "messages in the backlog",
            Self::Workers => "workers",
        }
    }

    /// Where it is measured.
    pub(crate) fn brokers(self) -> &'static [Kind] {
        match self {
            Self::Keys | Self::Routes | Self::Workers => &[Kind::Memory],
            Self::InFlight => &[Kind::Memory, Kind::Nats],
            Self::Headers | Self::Backlog => &Kind::ALL,
        }
    }

    /// Whose cost is measured: where the machine itself has a share in what grows, the best loop's beside postrider's.
    fn subjects(self, kind: Kind) -> &'static [Subject] {
        match (self, kind) {
            (Self::InFlight, Kind::Memory) => &[Subject::Postrider, Subject::Best],
            _ => &[Subject::Postrider],
        }
    }

    pub(crate) fn bound(self) -> Bound {
        match self {
            Self::Keys | Self::Routes | Self::InFlight | Self::Backlog => Bound::AtMost(1.25),
            Self::Workers => Bound::AtLeast(1.6),
            Self::Headers => Bound::None,
        }
    }

    /// Whether the messages stand in the broker before the first is handled; else they are published meanwhile, by the same process.
    pub(crate) fn stands(self) -> bool {
        matches!(self, Self::InFlight | Self::Backlog | Self::Workers)
    }

    /// From the least to the most.
    fn points(self, kind: Kind, quick: bool) -> Vec<u64> {
        let all: &[u64] = match (self, kind) {
            (Self::Keys, _) => &[1, 100, 10_000, 100_000, 1_000_000],
            (Self::Routes, _) => &[1, 10, 100, 1_000],
            (Self::InFlight, _) => &[64, 512, 4_096, 32_768, 100_000],
            (Self::Headers, _) => &[0, 1, 2, 4, 8, 16, 32],
            (Self::Backlog, Kind::Kafka) if !quick => &[1_000, 10_000, 100_000, 1_000_000, 10_000_000],
            (Self::Backlog, _) => &[1_000, 10_000, 100_000, 1_000_000],
            (Self::Workers, _) => &[1, 2],
        };
        match all {
            [first, .., last] if quick => vec![*first, *last],
            all => all.to_vec(),
        }
    }
}

impl Bound {
    pub(crate) fn figure(self) -> Option<f64> {
        match self {
            Self::AtMost(figure) | Self::AtLeast(figure) => Some(figure),
            Self::None => None,
        }
    }

    pub(crate) fn holds(self, quotient: f64) -> Option<bool> {
        match self {
            Self::AtMost(most) => Some(quotient <= most),
            Self::AtLeast(least) => Some(quotient >= least),
            Self::None => None,
        }
    }
}

/// Which curves are to be measured on which brokers: those that there are of what was asked for, in the order of curves.
///
/// # Errors
/// A curve and a broker were asked for that don't go together.
pub(crate) fn chosen(curves: &[Curve], kinds: &[Kind]) -> Result<Vec<(Curve, Kind)>> {
    let mut chosen = Vec::new();
    for curve in Curve::ALL.into_iter().filter(|curve| curves.is_empty() || curves.contains(curve)) {
        for kind in Kind::ALL.into_iter().filter(|kind| kinds.is_empty() || kinds.contains(kind)) {
            let there = curve.brokers().contains(&kind);
            let asked = !curves.is_empty() && !kinds.is_empty();
            ensure!(there || !asked, "there is no curve `{}` on {}", curve.name(), kind.name());
            if there {
                chosen.push((curve, kind));
            }
        }
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_had_is_an_error_and_what_nobody_asked_for_is_not() {
        assert!(chosen(&[Curve::Keys], &[Kind::Kafka]).is_err());
        assert_eq!(chosen(&[Curve::Keys], &[]).unwrap(), [(Curve::Keys, Kind::Memory)]);
        let nats: Vec<_> = chosen(&[], &[Kind::Nats]).unwrap().into_iter().map(|(curve, _)| curve).collect();
        assert_eq!(nats, [Curve::InFlight, Curve::Headers, Curve::Backlog]);
    }

    #[test]
    fn a_curve_holds_up_to_its_bound() {
        assert_eq!(Bound::AtMost(1.25).holds(1.25), Some(true));
        assert_eq!(Bound::AtMost(1.25).holds(1.26), Some(false));
        assert_eq!(Bound::AtLeast(1.6).holds(1.59), Some(false));
        assert_eq!(Bound::None.holds(9.0), None);
    }

    #[test]
    fn a_quick_curve_has_the_same_ends() {
        let ends = |quick| {
            let points = Curve::InFlight.points(Kind::Memory, quick);
            (points.first().copied(), points.last().copied())
        };
        assert_eq!(ends(true), ends(false));
    }
}
