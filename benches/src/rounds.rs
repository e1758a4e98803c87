//! Rounds: all subjects in turns, so that whatever else the machine does falls on all of them.

use anyhow::Result;

use crate::case::{Case, Direction, Kind, Subject};
use crate::ground::Ground;
use crate::job::{Job, Watch};
use crate::meter::Measured;

/// How long a run must last to tell how many messages a round needs.
const PILOT: f64 = 0.25;
/// Messages of the run that allocations are counted in.
const COUNTED: u64 = 20_000;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) rounds: usize,
    /// Seconds that a round is to last.
    pub(crate) seconds: f64,
    /// Whether allocations are counted, by one more run of each subject.
    pub(crate) counts: bool,
}

/// All runs of one subject in one case.
pub(crate) struct Runs {
    pub(crate) subject: Subject,
    pub(crate) rounds: Vec<Measured>,
    /// Allocations a message.
    pub(crate) allocations: Option<f64>,
}

/// Who is measured in a case.
pub(crate) fn subjects(kind: Kind, case: Case) -> Vec<Subject> {
    match (kind, case) {
        // there is no client whose documentation shows a loop; and half the usual loop's rate is another question
        (Kind::Memory, _) | (_, Case::Latency) => vec![Subject::Postrider, Subject::Best],
        (Kind::Kafka, Case::Publish) => {
            vec![Subject::Postrider, Subject::Usual, Subject::Best, Subject::Bare, Subject::Narrow]
        }
        // its client reads a message's headers only for who asks
        (Kind::Kafka, Case::Consume) => {
            vec![Subject::Postrider, Subject::Usual, Subject::Best, Subject::Bare]
        }
        (_, case) if case.direction() == Direction::In => {
            vec![Subject::Postrider, Subject::Usual, Subject::Best, Subject::Bare]
        }
        _ => vec![Subject::Postrider, Subject::Usual, Subject::Best],
    }
}

/// Measures a case: finds how many messages a round takes, then runs the rounds, each begun by another subject.
pub(crate) fn measure(ground: &Ground, job: &Job, extent: Extent) -> Result<Vec<Runs>> {
    let mut jobs: Vec<_> =
        subjects(job.broker, job.case).into_iter().map(|subject| Job { subject, ..job.clone() }).collect();
    let rates = jobs.iter().map(|job| pilot(ground, job)).collect::<Result<Vec<_>>>()?;
    // latency is taken at the same rate of all
    let half = rates.iter().copied().fold(f64::INFINITY, f64::min) / 2.0;
    for (job, rate) in jobs.iter_mut().zip(&rates) {
        let rate = if job.case == Case::Latency { half } else { *rate };
        job.rate = (job.case == Case::Latency).then_some(half);
        job.messages = messages(rate * extent.seconds * 1.1);
        ground.clear(job)?;
    }
    let mut runs: Vec<_> =
        jobs.iter().map(|job| Runs { subject: job.subject, rounds: Vec::new(), allocations: None }).collect();
    for round in 0..extent.rounds {
        for turn in 0..jobs.len() {
            let at = (round + turn) % jobs.len();
            let mut measured = ground.run(&jobs[at], Watch::Time)?;
            // who is faster at length than in the pilot is given more, before anything counts
            while round == 0
                && let Some(more) = more(jobs[at].messages, measured.seconds, extent.seconds)
            {
                jobs[at].messages = more;
                ground.clear(&jobs[at])?;
                measured = ground.run(&jobs[at], Watch::Time)?;
            }
            eprintln!(
                "{}, round {}/{}: {:.0}/s in {:.1} s, {:.1} µs of CPU a message{}",
                jobs[at],
                round + 1,
                extent.rounds,
                measured.rate(),
                measured.seconds,
                measured.cpu_per_million(),
                told(&measured),
            );
            runs[at].rounds.push(measured);
        }
    }
    for (job, runs) in jobs.iter_mut().zip(&mut runs) {
        ground.clear(job)?;
        if extent.counts
            && job.case.direction() != Direction::Through
            && !matches!(job.subject, Subject::Narrow | Subject::Bare)
        {
            // fewer messages: only how many allocations they need is looked at
            job.messages = job.messages.min(COUNTED);
            let counted = ground.run(job, Watch::Allocations)?;
            runs.allocations = counted.allocations.map(|n| n as f64 / counted.messages as f64);
            ground.clear(job)?;
        }
    }
    Ok(runs)
}

fn told(measured: &Measured) -> String {
    let doubled = match measured.doubled {
        0 => String::new(),
        n => format!(", {n} doubled"),
    };
    match measured.latency_us {
        Some([p50, p99, p999]) => format!(", p50 {p50:.0} µs, p99 {p99:.0} µs, p99.9 {p999:.0} µs{doubled}"),
        None => doubled,
    }
}

/// How many messages a second the subject manages, roughly.
fn pilot(ground: &Ground, job: &Job) -> Result<f64> {
    let mut messages = if job.case == Case::PublishOne && job.broker != Kind::Memory { 500 } else { 10_000 };
    loop {
        let job = Job { messages, ..job.clone() };
        ground.clear(&job)?;
        let measured = ground.run(&job, Watch::Time)?;
        if measured.seconds >= PILOT || messages > 4_000_000 {
            return Ok(measured.rate());
        }
        // more than enough for the next time, but never a leap into the blue
        let factor = (PILOT * 1.5 / measured.seconds.max(1e-6)).clamp(2.0, 20.0);
        messages = self::messages(messages as f64 * factor);
    }
}

/// How many messages make a round long enough that took so many seconds with `messages`; `None` if it was long enough.
fn more(messages: u64, took: f64, seconds: f64) -> Option<u64> {
    (took < seconds).then(|| {
        let factor = (seconds * 1.1 / took.max(1e-6)).clamp(1.1, 20.0);
        self::messages(messages as f64 * factor)
    })
}

/// A round number.
fn messages(about: f64) -> u64 {
    (about / 500.0).ceil().max(1.0) as u64 * 500
}

/// The middle one; of two, the mean.
pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_was_too_short_gets_more_and_one_that_was_not_gets_none() {
        assert_eq!(more(1_000, 3.0, 3.0), None);
        assert_eq!(more(1_000, 1.2, 3.0), Some(3_000));
        // never less, never a leap into the blue
        assert_eq!(more(10_000, 2.999, 3.0), Some(11_500));
        assert_eq!(more(1_000, 0.0, 3.0), Some(20_000));
    }

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
