//! `cargo xtask nightly`: slow checks that rarely fail, one step after the other.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use crate::adapters::ADAPTERS;
use crate::interrupt::Interrupt;
use crate::steps::{Steps, exit_code};
use crate::test::tell;
use crate::workspace::Workspace;
use crate::{bench, faults, fuzz, instructions, simulate, stress, tools};

/// What to do.
#[derive(Args)]
pub(crate) struct Options {
    /// Only this step; may be given again. All steps if none is given
    #[arg(long, value_name = "STEP")]
    only: Vec<Step>,
}

/// The steps, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// `cargo test` and the quickstart, as on a fresh clone: default features, no brokers
    Plain,
    /// Every combination of the facade's features, each feature of the other packages alone
    Features,
    /// Instructions a message, compared with `benches/instructions.json`
    Instructions,
    /// 10,000 seeds of the simulation
    Simulation,
    /// Each fuzz target for a minute
    Fuzz,
    /// The long fault run on each broker
    Faults,
    /// The short benches on each broker
    Bench,
    /// All tests three times, beside a busy machine
    Stress,
}

/// Does the steps, also after one that failed; ends with the times.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let mut nightly =
        Nightly { workspace: Workspace::find()?, interrupt: Interrupt::install()?, steps: Steps::new(true) };
    let all = Step::value_variants().iter().copied();
    let chosen = all.filter(|step| options.only.is_empty() || options.only.contains(step));
    tools::install(&nightly.workspace, &nightly.interrupt)?;
    for step in chosen {
        // only an interrupt ends the command
        nightly.step(step)?;
    }
    println!("{}", nightly.steps.times());
    Ok(exit_code(!nightly.steps.failed()))
}

struct Nightly {
    workspace: Workspace,
    interrupt: Interrupt,
    steps: Steps,
}

impl Nightly {
    fn step(&mut self, step: Step) -> Result<()> {
        match step {
            Step::Plain => self.plain(),
            Step::Features => self.features(),
            Step::Instructions => self.whole("instructions", instructions::compare),
            Step::Simulation => self.whole("simulation", simulate::long),
            Step::Fuzz => self.whole("fuzz", fuzz::all),
            Step::Faults => self.faults(),
            Step::Bench => self.whole("bench", bench::quick),
            Step::Stress => self.whole("stress", stress::all),
        }
    }

    fn whole(&mut self, name: &str, work: fn(&Workspace, &Interrupt) -> Result<bool>) -> Result<()> {
        let Self { workspace, interrupt, steps } = self;
        steps.step(name, || work(workspace, interrupt))
    }

    fn cargo(&mut self, name: &str, arguments: &[&str]) -> Result<()> {
        let Self { workspace, interrupt, steps } = self;
        steps.step(name, || {
            let mut command = workspace.cargo(arguments.iter().copied());
            // no broker is up for these
            tell(&mut command, None);
            Ok(interrupt.run(&mut command)?.success())
        })
    }

    fn plain(&mut self) -> Result<()> {
        self.cargo("quickstart", &["run", "--example", "quickstart"])?;
        self.cargo("plain cargo test", &["test"])
    }

    fn features(&mut self) -> Result<()> {
        let facade = ["hack", "check", "--package", "postrider", "--feature-powerset"];
        self.cargo("features of the facade", &facade)?;
        let others = ["hack", "check", "--workspace", "--exclude", "postrider", "--each-feature"];
        self.cargo("features of the other packages", &others)
    }

    fn faults(&mut self) -> Result<()> {
        let Self { workspace, interrupt, steps } = self;
        // an embedded broker ends with its process, so there is nothing to kill
        for adapter in ADAPTERS.iter().filter(|adapter| !adapter.brokers.is_empty()) {
            steps
                .step(&format!("faults: {}", adapter.name), || faults::long(workspace, interrupt, adapter))?;
        }
        Ok(())
    }
}
