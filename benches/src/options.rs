//! The command line: a whole bench, one run of one subject, or a table of figures that were written before.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};

use crate::case::{Case, Kind, Subject};
use crate::counts;
use crate::floors;
use crate::ground::Ground;
use crate::growth::point::Point;
use crate::growth::{self, Curve};
use crate::job::Job;
use crate::meter::CountAllocations;
use crate::order::CUSTOMERS;
use crate::report::Report;
use crate::rounds::{self, Extent};
use crate::table;
use crate::valgrind;
use crate::versions::versions;

/// Measures postrider beside the loop that the client's documentation shows and the fastest honest loop, in turns.
#[derive(Parser)]
#[command(name = "bench", args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Option<Action>,
    /// Only this broker; may be given again. A real one is found by `POSTRIDER_TEST_NATS_URL` and the like
    #[arg(long, value_name = "BROKER")]
    broker: Vec<Kind>,
    /// Only this case; may be given again
    #[arg(long, value_name = "CASE")]
    case: Vec<Case>,
    /// Growth instead of cases: what a message costs postrider as keys, routes, messages in flight, headers, the backlog or workers
    /// become more
    #[arg(long, conflicts_with_all = ["case", "payload", "seconds"])]
    growth: bool,
    /// Only this curve of growth; may be given again
    #[arg(long, value_name = "CURVE", requires = "growth")]
    curve: Vec<Curve>,
    /// Instructions a message instead of time, of postrider and of the best loop, each under valgrind: what else the machine does isn't
    /// among them. What publishes in bulk and what consumes, at 256 B, unless others are asked for
    #[arg(long, conflicts_with_all = ["growth", "curve", "quick", "seconds"])]
    instructions: bool,
    /// Only bodies of so many bytes of JSON, at least 128; may be given again (256 and 4096 unless said)
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(128..=512 * 1024))]
    payload: Vec<u32>,
    /// So many keys among the messages; those of one key are in one partition, however many there are
    #[arg(long, value_name = "N", default_value_t = CUSTOMERS, value_parser = clap::value_parser!(u64).range(1..=90_000))]
    #[arg(conflicts_with = "growth")]
    keys: u64,
    /// 256 B, five of the cases, 3 rounds of 0.8 s instead of 5 of 3 s, no allocations counted: at most ten minutes for all brokers; of
    /// growth, the ends of each curve in one round instead of three
    #[arg(long)]
    quick: bool,
    /// Rounds, each of all subjects, or of all points of a curve; one of instructions unless set
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Seconds that a round is to last at least
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Write the figures there as JSON, after each case
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// One run of one subject in this process; what the bench calls itself by
    #[command(hide = true)]
    Run(Job),
    /// One point of a curve of growth in this process; what the bench calls itself by
    #[command(hide = true)]
    Grow(Point),
    /// Print the tables of figures that were written by `--json`, as Markdown
    Markdown {
        /// What `--json` wrote
        file: PathBuf,
    },
    /// Draw the curves of growth that were written by `--json`, each as an SVG
    Plots {
        /// What `--json` wrote
        file: PathBuf,
        /// Where the pictures go
        folder: PathBuf,
    },
}

impl Options {
    pub(crate) fn run(self, count: Option<CountAllocations>) -> Result<()> {
        match self.action {
            Some(Action::Run(job)) => {
                println!("{}", serde_json::to_string(&Job { count, ..job }.here()?)?);
                Ok(())
            }
            Some(Action::Grow(point)) => {
                println!("{}", serde_json::to_string(&point.here()?)?);
                Ok(())
            }
            Some(Action::Markdown { file }) => {
                print!("{}", table::markdown(&read(&file)?));
                Ok(())
            }
            Some(Action::Plots { file, folder }) => growth::plot::write(&read(&file)?.growth, &folder),
            None if self.growth => self.grow(),
            None if self.instructions => self.count(),
            None => self.bench(),
        }
    }

    fn bench(&self) -> Result<()> {
        let quick = self.quick;
        let extent = Extent {
            rounds: self.rounds.map_or(if quick { 3 } else { 5 }, usize::from),
            seconds: self.seconds.unwrap_or(if quick { 0.8 } else { 3.0 }),
            counts: !quick,
        };
        ensure!(extent.seconds > 0.0, "a round must last longer than nothing");
        let cases = if quick { &Case::QUICK[..] } else { &Case::ALL };
        let payloads = if quick { &[256][..] } else { &[256, 4096] };
        let ground = Ground::new()?;
        let mut report = self.of_jobs(extent, cases, payloads, |report, job| {
            report.add(job, &rounds::measure(&ground, job, extent)?);
            Ok(())
        })?;
        report.weak = floors::weak(&report);
        println!("{}", table::text(&report));
        if let Some(file) = &self.json {
            write(&report, file)?;
        }
        // a loop that is slower than its floor makes ratios too good; the figures stay what they are
        for weak in &report.weak {
            println!("{weak}");
        }
        println!("nothing was left in any queue, and every confirmed message was stored or handled");
        Ok(())
    }

    fn count(&self) -> Result<()> {
        ensure!(
            !self.case.contains(&Case::Latency),
            "latency is time, and instructions say nothing of it; leave out `--instructions`, or count another case"
        );
        valgrind::is_there()?;
        let extent = Extent { rounds: self.rounds.map_or(1, usize::from), seconds: 0.0, counts: false };
        let ground = Ground::new()?;
        let report = self.of_jobs(extent, &counts::CASES, &[256], |report, job| {
            if counts::can_count(job.broker, job.case) {
                report.instructions.push(counts::count(&ground, job, extent.rounds)?);
            } else {
                eprintln!(
                    "{} {} is left out: the process also publishes",
                    job.broker.name(),
                    job.case.name()
                );
            }
            Ok(())
        })?;
        println!("{}", table::counted(&report));
        Ok(())
    }

    /// What comes of each broker, case and size: those asked for, or these. What was found is written after each.
    fn of_jobs(
        &self,
        extent: Extent,
        cases: &[Case],
        payloads: &[u32],
        mut each: impl FnMut(&mut Report, &Job) -> Result<()>,
    ) -> Result<Report> {
        let kinds = or(&self.broker, &Kind::ALL);
        let mut report = Report::new(extent);
        report.versions = versions(&kinds);
        for kind in kinds {
            let url = url(kind)?;
            for case in or(&self.case, cases) {
                for payload in or(&self.payload, payloads) {
                    let job = Job {
                        broker: kind,
                        case,
                        subject: Subject::Postrider,
                        payload: payload as usize,
                        messages: 0,
                        rate: None,
                        url: url.clone(),
                        keys: self.keys,
                        counted: false,
                        count: None,
                    };
                    each(&mut report, &job)?;
                    if let Some(file) = &self.json {
                        write(&report, file)?;
                    }
                }
            }
        }
        Ok(report)
    }

    fn grow(&self) -> Result<()> {
        let quick = self.quick;
        let rounds = self.rounds.map_or(if quick { 1 } else { 3 }, usize::from);
        let chosen = growth::chosen(&self.curve, &self.broker)?;
        let mut kinds: Vec<_> = chosen.iter().map(|(_, kind)| *kind).collect();
        kinds.dedup();
        let ground = Ground::new()?;
        let mut report = Report::new(Extent { rounds, seconds: 0.0, counts: false });
        report.versions = versions(&kinds);
        for (curve, kind) in chosen {
            let extent = growth::Extent { rounds, quick };
            report.growth.extend(growth::measure(&ground, curve, kind, &url(kind)?, extent)?);
            if let Some(file) = &self.json {
                write(&report, file)?;
            }
        }
        println!("{}", growth::table::text(&report.growth));
        println!("nothing was left in any queue, and every message was handled");
        Ok(())
    }
}

/// What was asked for, or all.
fn or<T: Clone>(given: &[T], all: &[T]) -> Vec<T> {
    if given.is_empty() { all } else { given }.to_vec()
}

fn read(file: &Path) -> Result<Report> {
    let text = std::fs::read_to_string(file).with_context(|| format!("{} can't be read", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} isn't what `--json` writes", file.display()))
}

fn url(kind: Kind) -> Result<String> {
    let Some(variable) = kind.variable() else {
        return Ok("memory:".to_owned());
    };
    let name = kind.name();
    std::env::var(variable)
        .with_context(|| format!("{variable} doesn't say where {name} is; `cargo xtask bench` brings one up"))
}

fn write(report: &Report, file: &Path) -> Result<()> {
    let json = serde_json::to_string_pretty(report)?;
    std::fs::write(file, json + "\n").with_context(|| format!("{} can't be written", file.display()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Options::command().debug_assert();
        let takes = |arguments: &str| Options::try_parse_from(arguments.split(' ')).is_ok();
        assert!(takes("bench --instructions --broker nats --case consume --rounds 2 --json f"));
        for other in ["--quick", "--growth", "--seconds 1", "--curve keys"] {
            assert!(!takes(&format!("bench --instructions {other}")), "{other}");
        }
    }
}
