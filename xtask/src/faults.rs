//! `cargo xtask faults`: brokers of its own for the fault run, which is a program of the package `postrider-system-tests`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::adapters::{self, Adapter};
use crate::interrupt::Interrupt;
use crate::set::Set;
use crate::steps::exit_code_of;
use crate::workspace::Workspace;

/// The program's name.
const PROGRAM: &str = "faults";

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// The broker to harm
    #[arg(long, value_parser = PossibleValuesParser::new(adapters::names().collect::<Vec<_>>()))]
    broker: String,
    /// At least 20,000 messages, 3 broker and 3 consumer kills
    #[arg(long, conflicts_with = "long")]
    short: bool,
    /// The full run
    #[arg(long)]
    long: bool,
    /// The schedule of kills and pauses; the run prints the one that it took
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Write the totals there as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Further arguments of the fault run, after `--`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs it; its exit code is ours.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let adapter = adapters::find(&options.broker).context("the broker is none that is tested")?;
    let workspace = Workspace::find()?;
    let interrupt = Interrupt::install()?;
    let mut arguments: Vec<String> = Vec::new();
    if options.short {
        arguments.push("--short".to_owned());
    }
    if options.long {
        arguments.push("--long".to_owned());
    }
    if let Some(seed) = options.seed {
        arguments.extend(["--seed".to_owned(), seed.to_string()]);
    }
    if let Some(json) = &options.json {
        arguments.extend(["--json".to_owned(), json.to_string_lossy().into_owned()]);
    }
    arguments.extend(options.rest.iter().cloned());
    let program = build(&workspace, &interrupt)?;
    let status = run(&workspace, &interrupt, adapter, &program, &arguments)?;
    Ok(exit_code_of(status))
}

/// The short run, as a step of `cargo xtask test`: by the program that the tests were built with.
pub(crate) fn short(workspace: &Workspace, interrupt: &Interrupt, adapter: &Adapter) -> Result<bool> {
    let program = workspace.tested(interrupt, PROGRAM)?;
    Ok(run(workspace, interrupt, adapter, &program, &kept(workspace, adapter, "--short"))?.success())
}

/// The full run, as a step of `cargo xtask nightly`.
pub(crate) fn long(workspace: &Workspace, interrupt: &Interrupt, adapter: &Adapter) -> Result<bool> {
    let program = build(workspace, interrupt)?;
    Ok(run(workspace, interrupt, adapter, &program, &kept(workspace, adapter, "--long"))?.success())
}

/// The arguments of a run whose totals are kept below the target directory.
fn kept(workspace: &Workspace, adapter: &Adapter, length: &str) -> [String; 3] {
    let json = workspace.target.join(format!("faults-{}.json", adapter.name));
    [length.to_owned(), "--json".to_owned(), json.to_string_lossy().into_owned()]
}

/// Builds it as programs are shipped, once for all brokers.
fn build(workspace: &Workspace, interrupt: &Interrupt) -> Result<PathBuf> {
    if !interrupt.run(&mut workspace.release(&[PROGRAM]))?.success() {
        bail!("the fault run could not be built");
    }
    Ok(workspace.released(PROGRAM))
}

fn run(
    workspace: &Workspace,
    interrupt: &Interrupt,
    adapter: &Adapter,
    program: &Path,
    arguments: &[String],
) -> Result<ExitStatus> {
    let set = Set::up(workspace, interrupt, "faults", adapter.brokers)?;
    let mut faults = Command::new(program);
    faults.args(["--broker", adapter.name]).args(arguments);
    set.tell(&mut faults);
    interrupt.run(&mut faults)
}
