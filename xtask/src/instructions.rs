//! `cargo xtask instructions`: how many instructions a message costs, counted by valgrind's callgrind, which doesn't depend on what else
//! the machine does; beside those of `benches/instructions.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::interrupt::Interrupt;
use crate::steps::exit_code;
use crate::workspace::Workspace;

const PROGRAM: &str = "postrider-instructions";
/// How often the work is done in the two runs: what a run costs by itself is in both.
const RUNS: (u64, u64) = (1_000, 6_000);
/// How often both are counted; the median is taken. Where memory isn't laid out alike, one run differs from another by 1 % and more.
const TIMES: usize = 3;
/// By how much a message may cost more, or less, than it did. Less is to be written down, or the next growth up to it goes unseen.
const TOLERANCE: f64 = 0.02;

/// What to count.
#[derive(Args)]
pub(crate) struct Options {
    /// Write down what was counted as what holds from now on
    #[arg(long)]
    bless: bool,
}

/// What was counted when it was written down.
type Baseline = BTreeMap<String, u64>;

/// Counts; fails where a message costs more than it did.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let (workspace, interrupt) = (Workspace::find()?, Interrupt::install()?);
    let passed = run(&workspace, &interrupt, options.bless)?;
    Ok(exit_code(passed))
}

/// As a step of `cargo xtask nightly`.
pub(crate) fn compare(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    run(workspace, interrupt, false)
}

fn run(workspace: &Workspace, interrupt: &Interrupt, bless: bool) -> Result<bool> {
    if !interrupt.run(&mut workspace.release(&[PROGRAM]))?.success() {
        bail!("{PROGRAM} could not be built");
    }
    let program = workspace.released(PROGRAM);
    let list = Command::new(&program).arg("--list").output().context("it could not be run")?;
    if !list.status.success() {
        bail!("{PROGRAM} told no cases:\n{}", String::from_utf8_lossy(&list.stderr));
    }
    let mut counted = Baseline::new();
    for case in String::from_utf8_lossy(&list.stdout).lines() {
        eprintln!("counting the instructions of `{case}`");
        let mut costs = Vec::new();
        for _ in 0..TIMES {
            let few = instructions(&program, case, RUNS.0)?;
            let many = instructions(&program, case, RUNS.1)?;
            let more = many.checked_sub(few).with_context(|| format!("`{case}`: more work took less"))?;
            costs.push(more / (RUNS.1 - RUNS.0));
        }
        costs.sort_unstable();
        counted.insert(case.to_owned(), costs[TIMES / 2]);
    }
    let file = workspace.root.join("benches").join("instructions.json");
    if bless {
        let json = serde_json::to_string_pretty(&counted)? + "\n";
        fs::write(&file, json).with_context(|| format!("{} can't be written", file.display()))?;
        println!("{}", table(&counted, &counted));
        return Ok(true);
    }
    let read = fs::read_to_string(&file).with_context(|| format!("{} can't be read", file.display()))?;
    let before: Baseline =
        serde_json::from_str(&read).with_context(|| format!("{} is no baseline", file.display()))?;
    println!("{}", table(&before, &counted));
    let off = off(&before, &counted);
    if !off.is_empty() {
        eprintln!(
            "{} by more than {:.0} %: find out why, or let it hold from now on by `cargo xtask instructions --bless`",
            off.join(", "),
            TOLERANCE * 100.0
        );
    }
    Ok(off.is_empty())
}

/// The instructions of one run.
fn instructions(program: &PathBuf, case: &str, count: u64) -> Result<u64> {
    let output = Command::new(program)
        .args(["--counted", case, &count.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("it could not be run")?;
    if !output.status.success() {
        bail!("`{case}` could not be counted:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let told = String::from_utf8_lossy(&output.stdout);
    told.trim().parse().with_context(|| format!("`{told}` is no count"))
}

/// The cases that cost something else than before.
fn off(before: &Baseline, counted: &Baseline) -> Vec<String> {
    let names: std::collections::BTreeSet<_> = before.keys().chain(counted.keys()).collect();
    let off = names.into_iter().filter(|name| match (before.get(*name), counted.get(*name)) {
        (Some(before), Some(now)) => before.abs_diff(*now) as f64 > *before as f64 * TOLERANCE,
        // a case that came or went is to be written down, too
        _ => true,
    });
    off.map(|name| format!("`{name}`")).collect()
}

fn table(before: &Baseline, counted: &Baseline) -> String {
    let mut lines = vec![format!("{:<10} {:>12} {:>12} {:>8}", "case", "before", "now", "change")];
    for (case, now) in counted {
        let (was, change) = match before.get(case) {
            Some(was) => (was.to_string(), format!("{:+.1} %", 100.0 * (*now as f64 / *was as f64 - 1.0))),
            None => ("-".to_owned(), "new".to_owned()),
        };
        lines.push(format!("{case:<10} {was:>12} {now:>12} {change:>8}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(cases: &[(&str, u64)]) -> Baseline {
        cases.iter().map(|(case, count)| ((*case).to_owned(), *count)).collect()
    }

    #[test]
    fn three_per_cent_are_seen_and_two_are_not() {
        let before = baseline(&[("memory", 10_000), ("nats", 1_000)]);
        assert!(off(&before, &baseline(&[("memory", 10_200), ("nats", 980)])).is_empty());
        assert_eq!(off(&before, &baseline(&[("memory", 10_300), ("nats", 1_000)])), ["`memory`"]);
        assert_eq!(off(&before, &baseline(&[("memory", 9_700), ("nats", 1_000)])), ["`memory`"]);
        assert_eq!(off(&before, &baseline(&[("memory", 10_000)])), ["`nats`"]);
    }
}
