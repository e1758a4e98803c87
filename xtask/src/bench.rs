//! `cargo xtask bench`: brokers of its own for the bench, which is the package `postrider-bench`, built as it is shipped.

use std::path::PathBuf;
use std::process::{Command, ExitCode, ExitStatus};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::adapters;
use crate::house::House;
use crate::interrupt::Interrupt;
use crate::set::Set;

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Only this broker; may be given again
    #[arg(long, value_name = "BROKER", value_parser = PossibleValuesParser::new(adapters::names().collect::<Vec<_>>()))]
    broker: Vec<String>,
    /// Only this case, such as `publish`, `consume-keyed` or `latency`; may be given again
    #[arg(long, value_name = "CASE")]
    case: Vec<String>,
    /// 256 B, five of the cases, 3 rounds of 0.7 s instead of 5 rounds of 3 s: at most 10 minutes for all brokers
    #[arg(long)]
    quick: bool,
    /// Write the figures there as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the tables of figures that `--json` wrote before as Markdown, as the book's page has them; measure nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["broker", "case", "quick", "json"])]
    markdown: Option<PathBuf>,
    /// Further arguments of the bench, after `--`: `--payload BYTES`, `--rounds N`, `--seconds SECONDS`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs it; its exit code is ours.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let (house, interrupt) = (House::find()?, Interrupt::install()?);
    let mut build = house.cargo(["build", "--release", "--package", "postrider-bench"]);
    if !interrupt.run(&mut build)?.success() {
        bail!("the benches could not be built");
    }
    if let Some(file) = &options.markdown {
        return Ok(code(interrupt.run(program(&house).arg("markdown").arg(file))?));
    }
    let chosen: Vec<_> = if options.broker.is_empty() {
        adapters::names().collect()
    } else {
        options.broker.iter().map(String::as_str).collect()
    };
    let mut bench = program(&house);
    let mut brokers = Vec::new();
    for name in chosen {
        let adapter = adapters::find(name).context("the broker is none that is tested")?;
        // of two versions of one broker, the first is measured
        brokers.extend(adapter.brokers.first().copied());
        bench.args(["--broker", name]);
    }
    bench.args(options.case.iter().flat_map(|case| ["--case", case]));
    if options.quick {
        bench.arg("--quick");
    }
    if let Some(json) = &options.json {
        bench.arg("--json").arg(json);
    }
    bench.args(&options.rest);
    let set = Set::up(&house, &interrupt, "bench", &brokers)?;
    set.tell(&mut bench);
    Ok(code(interrupt.run(&mut bench)?))
}

fn program(house: &House) -> Command {
    Command::new(house.target.join("release").join("postrider-bench"))
}

fn code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}
