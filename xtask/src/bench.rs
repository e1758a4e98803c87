//! `cargo xtask bench`: brokers of its own for the bench, which is the package `postrider-bench`, built as it is shipped.

use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::adapters;
use crate::interrupt::Interrupt;
use crate::set::Set;
use crate::steps::exit_code_of;
use crate::workspace::Workspace;

/// Where the book's page has its pictures.
const PLOTS: &str = "docs/src/brokers/growth";

/// What to measure.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
#[derive(Args, Default)]
pub(crate) struct Options {
    /// Only this broker; may be given again
    #[arg(long, value_name = "BROKER", value_parser = PossibleValuesParser::new(adapters::names().collect::<Vec<_>>()))]
    broker: Vec<String>,
    /// Of a broker that is tested in several versions, the newest instead of the first
    #[arg(long)]
    newest: bool,
    /// Only this case, such as `publish`, `consume-keyed` or `latency`; may be given again
    #[arg(long, value_name = "CASE")]
    case: Vec<String>,
    /// Growth instead of cases: what a message costs postrider as one thing becomes more and the rest stays
    #[arg(long, conflicts_with = "case")]
    growth: bool,
    /// Only this curve of growth: `keys`, `routes`, `in-flight`, `headers`, `backlog` or `workers`; may be given again
    #[arg(long, value_name = "CURVE", requires = "growth")]
    curve: Vec<String>,
    /// Instructions a message instead of time, of postrider and of the best loop, under valgrind
    #[arg(long, conflicts_with_all = ["growth", "curve", "quick"])]
    instructions: bool,
    /// 256 B, five of the cases, 3 rounds of 0.8 s instead of 5 of 3 s, no allocations counted: at most ten minutes for all brokers; of
    /// growth, the ends of each curve in one round instead of three
    #[arg(long)]
    quick: bool,
    /// Write the figures there as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the tables of figures that `--json` wrote before as Markdown, as the book's page has them; measure nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["broker", "newest", "case", "growth", "quick", "instructions", "json"])]
    markdown: Option<PathBuf>,
    /// Draw the curves of growth that `--json` wrote before, for the book's page; measure nothing
    #[arg(long, value_name = "FILE", conflicts_with_all = ["broker", "newest", "case", "growth", "quick", "instructions", "json"])]
    plots: Option<PathBuf>,
    /// Further arguments of the bench, after `--`: `--payload BYTES`, `--keys N`, `--rounds N`, `--seconds SECONDS`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs it; its exit code is ours.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    run(&Workspace::find()?, &Interrupt::install()?, options)
}

/// The short run of all brokers, as a step of `cargo xtask nightly`.
pub(crate) fn quick(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let options = Options { quick: true, ..Options::default() };
    Ok(run(workspace, interrupt, &options)? == ExitCode::SUCCESS)
}

fn run(workspace: &Workspace, interrupt: &Interrupt, options: &Options) -> Result<ExitCode> {
    let programs = ["postrider-bench", "postrider-bench-allocations"];
    if !interrupt.run(&mut workspace.release(&programs))?.success() {
        bail!("the benches could not be built");
    }
    if let Some(file) = &options.markdown {
        return Ok(exit_code_of(interrupt.run(program(workspace).arg("markdown").arg(file))?));
    }
    if let Some(file) = &options.plots {
        let folder = workspace.root.join(PLOTS);
        return Ok(exit_code_of(interrupt.run(program(workspace).arg("plots").arg(file).arg(folder))?));
    }
    let mut bench = program(workspace);
    options.tell(&mut bench);
    let brokers = options.brokers()?;
    let set = Set::up(
        workspace,
        interrupt,
        "bench",
        &brokers.iter().map(|(_, chosen)| *chosen).collect::<Vec<_>>(),
    )?;
    set.tell(&mut bench);
    for (first, chosen) in brokers {
        // the bench looks for a broker where its first version would be
        let url = set.variable(&url_of(chosen)).context("the broker has no URL")?;
        bench.env(url_of(first), url);
    }
    Ok(exit_code_of(interrupt.run(&mut bench)?))
}

impl Options {
    /// The brokers to bring up, each behind the first version of its kind, by whose name the bench looks for it.
    fn brokers(&self) -> Result<Vec<(&'static str, &'static str)>> {
        let all = self.broker.is_empty();
        let chosen = adapters::names().filter(|name| all || self.broker.iter().any(|broker| broker == name));
        let mut brokers = Vec::new();
        for name in chosen {
            let adapter = adapters::find(name).context("the broker is none that is tested")?;
            if let [first, .., newest] | [first @ newest] = adapter.brokers {
                brokers.push((*first, if self.newest { *newest } else { *first }));
            }
        }
        Ok(brokers)
    }

    /// Passes on what is to be measured.
    fn tell(&self, bench: &mut Command) {
        for (flag, values) in [("--broker", &self.broker), ("--case", &self.case), ("--curve", &self.curve)] {
            bench.args(values.iter().flat_map(|value| [flag, value]));
        }
        for (flag, set) in
            [("--growth", self.growth), ("--quick", self.quick), ("--instructions", self.instructions)]
        {
            bench.args(set.then_some(flag));
        }
        if let Some(json) = &self.json {
            bench.arg("--json").arg(json);
        }
        bench.args(&self.rest);
    }
}

/// The variable that says where a broker is.
fn url_of(broker: &str) -> String {
    format!("POSTRIDER_TEST_{}_URL", broker.to_uppercase())
}

fn program(workspace: &Workspace) -> Command {
    Command::new(workspace.released("postrider-bench"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn brokers(arguments: &str) -> Vec<(&'static str, &'static str)> {
        Line::try_parse_from(arguments.split(' ')).unwrap().options.brokers().unwrap()
    }

    #[test]
    fn of_several_versions_the_first_is_measured_or_the_newest() {
        let first = [("nats", "nats"), ("kafka", "kafka"), ("rabbitmq", "rabbitmq")];
        assert_eq!(brokers("bench"), first);
        assert_eq!(brokers("bench --broker rabbitmq --newest"), [("rabbitmq", "rabbitmq4")]);
        assert_eq!(brokers("bench --broker kafka --newest"), [("kafka", "kafka")]);
        assert_eq!(brokers("bench --broker memory"), []);
        assert_eq!(url_of("rabbitmq4"), "POSTRIDER_TEST_RABBITMQ4_URL");
    }
}
