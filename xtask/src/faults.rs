//! `cargo xtask faults`: brokers of its own for the fault run, which is a program of the package `postrider-system-tests`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::adapters::{self, Adapter};
use crate::house::House;
use crate::interrupt::Interrupt;
use crate::set::Set;

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
    let house = House::find()?;
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
    let status = run(&house, &interrupt, adapter, &arguments)?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The short run, as a step of `cargo xtask test`.
pub(crate) fn short(house: &House, interrupt: &Interrupt, adapter: &Adapter) -> Result<bool> {
    let json = house.target.join(format!("faults-{}.json", adapter.name));
    let arguments = ["--short".to_owned(), "--json".to_owned(), json.to_string_lossy().into_owned()];
    Ok(run(house, interrupt, adapter, &arguments)?.success())
}

fn run(house: &House, interrupt: &Interrupt, adapter: &Adapter, arguments: &[String]) -> Result<ExitStatus> {
    // built as what is measured is built: a slow program is killed at other moments than a fast one; and once for all brokers
    if !interrupt.run(&mut house.release(&["faults"]))?.success() {
        bail!("the fault run could not be built");
    }
    let set = Set::up(house, interrupt, "faults", adapter.brokers)?;
    let mut faults = Command::new(program(&house.target));
    faults.args(["--broker", adapter.name]).args(arguments);
    set.tell(&mut faults);
    interrupt.run(&mut faults)
}

fn program(target: &Path) -> PathBuf {
    target.join("release").join("faults")
}
