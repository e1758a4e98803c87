//! Measures a curve: all its points in turns, each run a process of its own, so that whatever else the machine does falls on all of
//! them; what stands at the broker is made before each run and checked after.

use std::io::{BufRead as _, BufReader, Write as _};

use anyhow::{Context as _, Result, ensure};
use postrider::Broker;

use super::figures::{Growth, Spot};
use super::point::Point;
use super::{Bound, Curve, Extent, drain, load};
use crate::case::{Kind, Subject};
use crate::ground::Ground;
use crate::meter::Measured;
use crate::rounds::median;

/// Measures one curve on one broker, of each subject that it has.
pub(crate) fn measure(
    ground: &Ground,
    curve: Curve,
    kind: Kind,
    url: &str,
    extent: Extent,
) -> Result<Vec<Growth>> {
    let subjects = curve.subjects(kind);
    let ats = curve.points(kind, extent.quick);
    let points = ats.iter().flat_map(|at| {
        subjects.iter().map(|subject| Point { subject: *subject, ..point(curve, kind, *at, url, extent) })
    });
    let points: Vec<_> = points.collect();
    let mut runs: Vec<Vec<Measured>> = vec![Vec::new(); points.len()];
    for round in 0..extent.rounds {
        for turn in 0..points.len() {
            let at = (round + turn) % points.len();
            let measured =
                run(ground, &points[at]).with_context(|| format!("{}: not measured", points[at]))?;
            eprintln!(
                "{}, round {}/{}: {:.2} µs of CPU a message, {:.0}/s, {} MiB",
                points[at],
                round + 1,
                extent.rounds,
                measured.cpu_per_million(),
                measured.rate(),
                measured.peak_rss_bytes.unwrap_or_default() >> 20,
            );
            runs[at].push(measured);
        }
    }
    let found = |subject: &Subject| {
        let of = points.iter().zip(&runs).filter(|(point, _)| point.subject == *subject);
        growth(curve, kind, *subject, of.map(|(point, runs)| found(point, runs)).collect())
    };
    Ok(subjects.iter().map(found).collect())
}

/// How much a point takes: the same of each point, and about a second of work or more.
fn point(curve: Curve, kind: Kind, at: u64, url: &str, extent: Extent) -> Point {
    let (warm, messages) = match (curve, kind) {
        // warm is who has seen every key
        (Curve::Keys, _) => (1_000_000, 1_000_000),
        (Curve::Routes, _) => (256_000, 1_024_000),
        (Curve::InFlight, Kind::Nats) => (100_000, 200_000),
        (Curve::InFlight, _) => (100_000, 400_000),
        (Curve::Headers, Kind::Memory) | (Curve::Workers, _) => (50_000, 400_000),
        (Curve::Headers, Kind::Rabbitmq) => (20_000, 80_000),
        (Curve::Headers, _) => (20_000, 200_000),
        // what is longer is drained once, what is shorter as often as it takes
        (Curve::Backlog, _) => (20_000, if extent.quick { 100_000 } else { 250_000 }),
    };
    let messages = if curve == Curve::Backlog { messages.max(at).div_ceil(at) * at } else { messages };
    Point {
        broker: kind,
        curve,
        subject: Subject::Postrider,
        at,
        warm,
        messages,
        payload: 256,
        url: url.to_owned(),
    }
}

fn growth(curve: Curve, kind: Kind, subject: Subject, points: Vec<Spot>) -> Growth {
    let figure = |at: &Spot| if curve == Curve::Workers { at.per_second } else { at.cpu_us_per_message };
    let end_to_end = points.last().map_or(f64::NAN, figure) / points.first().map_or(f64::NAN, figure);
    // what others grow by is shown, and held to nothing
    let bound = if subject == Subject::Postrider { curve.bound() } else { Bound::None };
    Growth {
        broker: kind.name().to_owned(),
        subject: subject.name().to_owned(),
        curve: curve.name().to_owned(),
        unit: curve.unit().to_owned(),
        points,
        end_to_end,
        bound: bound.figure(),
        holds: bound.holds(end_to_end),
    }
}

fn found(point: &Point, runs: &[Measured]) -> Spot {
    let figures = |of: fn(&Measured) -> f64| median(&runs.iter().map(of).collect::<Vec<_>>());
    Spot {
        at: point.at,
        cpu_us_per_message: figures(Measured::cpu_per_million),
        per_second: figures(Measured::rate),
        peak_rss_bytes: runs.iter().filter_map(|run| run.peak_rss_bytes).max(),
    }
}

/// One run, with what it needs made before, and what it left checked after.
fn run(ground: &Ground, point: &Point) -> Result<Measured> {
    if point.broker == Kind::Memory {
        return read(point, None);
    }
    let job = point.job();
    ground.clear(&job)?;
    let broker = ground.runtime().block_on(crate::postrider::declare_at(&point.address(), &job))?;
    let filler = Filler { ground, point, broker };
    if point.curve == Curve::InFlight {
        filler.fill(0..job.messages)?;
    }
    let measured = read(point, Some(&filler))?;
    ground.drained(&job)?;
    ground.clear(&job)?;
    Ok(measured)
}

/// Puts backlogs there from this process.
struct Filler<'a> {
    ground: &'a Ground,
    point: &'a Point,
    broker: Broker,
}

impl Filler<'_> {
    fn fill(&self, numbers: std::ops::Range<u64>) -> Result<()> {
        self.ground.runtime().block_on(load::send(self.point, &self.broker, numbers))
    }
}

/// Runs the process to its end and reads what it found.
fn read(point: &Point, filler: Option<&Filler<'_>>) -> Result<Measured> {
    let mut child = point.apart()?;
    let (mut input, output) = (child.stdin.take(), child.stdout.take().context("it has no output")?);
    let mut backlogs = drain::backlogs(point);
    let mut last = String::new();
    for line in BufReader::new(output).lines() {
        last = line?;
        if last == drain::FILL
            && let (Some(filler), Some(input)) = (filler, &mut input)
        {
            filler.fill(backlogs.next().context("it asks for more than there is to be")?)?;
            writeln!(input, "{}", drain::FILLED)?;
        }
    }
    ensure!(child.wait()?.success(), "the process has failed");
    serde_json::from_str(&last).context("the process said something unreadable")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: u64, cpu_us_per_message: f64, per_second: f64) -> Spot {
        Spot { at, cpu_us_per_message, per_second, peak_rss_bytes: None }
    }

    #[test]
    fn a_curve_is_held_to_its_ends_and_workers_to_their_rate() {
        let keys = growth(
            Curve::Keys,
            Kind::Memory,
            Subject::Postrider,
            vec![at(1, 4.0, 1.0), at(10, 9.0, 1.0), at(100, 5.2, 1.0)],
        );
        assert!((keys.end_to_end - 1.3).abs() < 1e-9);
        assert_eq!(keys.holds, Some(false));
        let workers = growth(
            Curve::Workers,
            Kind::Memory,
            Subject::Postrider,
            vec![at(1, 7.0, 100.0), at(2, 9.0, 170.0)],
        );
        assert!((workers.end_to_end - 1.7).abs() < 1e-9);
        assert_eq!(workers.holds, Some(true));
        let best =
            growth(Curve::InFlight, Kind::Memory, Subject::Best, vec![at(64, 1.0, 1.0), at(512, 3.0, 1.0)]);
        assert!((best.end_to_end - 3.0).abs() < 1e-9);
        assert_eq!((best.whose().as_str(), best.bound, best.holds), ("memory, best", None, None));
    }

    #[test]
    fn a_short_backlog_is_repeated_and_a_long_one_is_not() {
        let extent = Extent { rounds: 1, quick: false };
        let drains = |at| {
            let point = point(Curve::Backlog, Kind::Nats, at, "", extent);
            let backlogs: Vec<_> = drain::backlogs(&point).collect();
            assert_eq!(backlogs.last().map(|last| last.end), Some(point.warm + point.messages));
            backlogs.len() - 1
        };
        assert_eq!([drains(1_000), drains(100_000), drains(1_000_000)], [250, 3, 1]);
    }
}
