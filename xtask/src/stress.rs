//! `cargo xtask stress`: tests again and again, beside a busy machine, to find those that depend on its speed.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::adapters;
use crate::counts::Counts;
use crate::interrupt::Interrupt;
use crate::load::Load;
use crate::nextest::{Needs, Nextest};
use crate::set::Set;
use crate::steps;
use crate::test::tell;
use crate::tools;
use crate::workspace::Workspace;

/// How often each test runs unless the command line says otherwise, also as a step of `cargo xtask nightly`.
const RUNS: u32 = 3;

/// What to repeat.
#[derive(Args)]
pub(crate) struct Options {
    /// Only tests whose names contain this text; may be given again. All tests if none is given
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
    /// How often each test runs
    #[arg(long, value_name = "N", default_value_t = RUNS, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Keep every core busy meanwhile
    #[arg(long)]
    load: bool,
    /// Only tests of this adapter and those that need no broker; may be given again
    #[arg(long, value_name = "ADAPTER", value_parser = PossibleValuesParser::new(adapters::names().collect::<Vec<_>>()))]
    only: Vec<String>,
}

/// Repeats tests; fails where one failed in one of the runs.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let (workspace, interrupt) = (Workspace::find()?, Interrupt::install()?);
    tools::install(&workspace, &interrupt)?;
    let passed = run(&workspace, &interrupt, options)?;
    Ok(steps::exit_code(passed))
}

/// All tests beside a busy machine, as a step of `cargo xtask nightly`.
pub(crate) fn all(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    run(workspace, interrupt, &Options { tests: Vec::new(), runs: RUNS, load: true, only: Vec::new() })
}

fn run(workspace: &Workspace, interrupt: &Interrupt, options: &Options) -> Result<bool> {
    let adapters: Vec<_> = adapters::chosen(&options.only).collect();
    let brokers: Vec<_> = adapters.iter().flat_map(|adapter| adapter.brokers).copied().collect();
    let set = Set::up(workspace, interrupt, "test", &brokers)?;
    let nextest = Nextest::new(workspace, adapters::filter(&adapters));
    let mut failures: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut counts = Counts::default();
    let mut passed = true;
    for number in 1..=options.runs {
        eprintln!("-- run {number} of {}", options.runs);
        let mut command = nextest.command("run", Needs::Either);
        command.args(&options.tests);
        tell(&mut command, Some(&set));
        // the tests are built before the cores are kept busy
        if number == 1 && !interrupt.run(nextest.command("run", Needs::Either).arg("--no-run"))?.success() {
            return Ok(false);
        }
        let load = options.load.then(Load::start);
        let (run_passed, report) = nextest.run(interrupt, &mut command)?;
        drop(load);
        passed &= run_passed;
        let report =
            report.with_context(|| format!("run {number}: cargo-nextest wrote no report; see above"))?;
        counts += Counts::from_junit(&report)?;
        for test in Counts::failures(&report)? {
            failures.entry(test).or_default().push(number);
        }
    }
    if counts.ran() == 0 {
        bail!("no test has a name that contains {}", options.tests.join(" or "));
    }
    println!("{}", table(&failures, options.runs));
    println!("{counts}");
    Ok(passed)
}

/// The tests that failed, each with the runs in which it did.
fn table(failures: &BTreeMap<String, Vec<u32>>, runs: u32) -> String {
    if failures.is_empty() {
        return format!("no test failed in {runs} runs");
    }
    let lines = failures.iter().map(|(test, numbers)| {
        let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
        format!("{:>3} of {runs} runs failed (run {}): {test}\n", numbers.len(), numbers.join(", "))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failed_test_is_listed_with_its_runs() {
        let failures = BTreeMap::from([("core::a b".to_owned(), vec![1, 3])]);
        assert_eq!(table(&failures, 3), "  2 of 3 runs failed (run 1, 3): core::a b\n");
        assert_eq!(table(&BTreeMap::new(), 3), "no test failed in 3 runs");
    }
}
