//! Instructions a message, of postrider's loop and of the best: processor time without what else the machine does.

use anyhow::{Context as _, Result};

use crate::case::{Case, Direction, Kind, Subject};
use crate::ground::Ground;
use crate::job::{Job, Watch};
use crate::report::Counted;
use crate::rounds::median;

/// Messages of the two runs whose difference is divided: what a process costs by itself, and what stands still at its end, is in both.
const RUNS: (u64, u64) = (2_000, 12_000);

/// What processor time a message may be of **best**'s on a real broker, as the project asks for; shown, and nothing fails by it.
const MOST: f64 = 1.15;

/// What is counted unless cases are asked for: those whose cost is the messages', not that of waiting for one answer.
pub(crate) const CASES: [Case; 5] =
    [Case::Publish, Case::PublishAll, Case::Consume, Case::ConsumeKeyed, Case::ConsumeBatch];

/// Counts a case.
pub(crate) fn count(ground: &Ground, job: &Job, rounds: usize) -> Result<Counted> {
    let of = |subject| -> Result<f64> {
        let mut costs = Vec::with_capacity(rounds);
        for round in 0..rounds {
            let run = |messages| -> Result<u64> {
                let job = Job { subject, messages, ..job.clone() };
                ground.clear(&job)?;
                let counted = ground.run(&job, Watch::Instructions)?.instructions;
                ground.clear(&job)?;
                counted.context("nothing was counted")
            };
            let (few, many) = (run(RUNS.0)?, run(RUNS.1)?);
            let more = many
                .checked_sub(few)
                .with_context(|| format!("{}: more messages took less", job.case.name()))?;
            let cost = more as f64 / (RUNS.1 - RUNS.0) as f64;
            eprintln!(
                "{}, round {}/{rounds}: {cost:.0} instructions a message",
                Job { subject, ..job.clone() },
                round + 1
            );
            costs.push(cost);
        }
        Ok(median(&costs))
    };
    let (postrider, best) = (of(Subject::Postrider)?, of(Subject::Best)?);
    Ok(Counted {
        broker: job.broker.name().to_owned(),
        case: job.case.name().to_owned(),
        payload: job.payload,
        postrider,
        best,
        ratio: postrider / best,
        most: (job.broker != Kind::Memory && CASES.contains(&job.case)).then_some(MOST),
    })
}

/// Whether the case can be counted there. On the embedded broker what is only consumed is published in the same process, and callgrind
/// counts all of it.
pub(crate) fn can_count(kind: Kind, case: Case) -> bool {
    kind != Kind::Memory || case.direction() != Direction::Out
}
