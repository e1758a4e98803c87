//! `cargo xtask test`: everything that a change has to pass, in order, on brokers brought up for it.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::adapters::{self, ADAPTERS, Adapter};
use crate::conformance_table::Table;
use crate::counts::Counts;
use crate::interrupt::{Interrupt, Interrupted, typed};
use crate::nextest::{Needs, Nextest};
use crate::set::Set;
use crate::steps::{Steps, Verdict};
use crate::workspace::Workspace;
use crate::{docs, faults, simulate, tools};

/// The book's page of what the conformance suite found.
const PAGE: &str = "docs/src/brokers/conformance.md";

/// What to test.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
#[derive(Args)]
pub(crate) struct Options {
    /// Test this adapter and none of the others; may be given again
    #[arg(long, value_name = "ADAPTER", value_parser = PossibleValuesParser::new(adapters::names().collect::<Vec<_>>()))]
    only: Vec<String>,
    /// Bring up no broker, and test the adapters that need none
    #[arg(long)]
    no_brokers: bool,
    /// Only the tests that need no broker: for the inner loop
    #[arg(long, conflicts_with_all = ["only", "keep_going"])]
    quick: bool,
    /// Do the steps after a failed one as well
    #[arg(long)]
    keep_going: bool,
    /// Write what the conformance suite found into the book, where it says something else
    #[arg(long)]
    bless: bool,
}

/// Tests, and ends with the table, the times and the summary.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let mut run = Run {
        results: workspace.target.join("conformance"),
        workspace,
        interrupt: Interrupt::install()?,
        tested: tested(options),
        steps: Steps::new(options.keep_going),
        bless: options.bless,
        counts: Counts::default(),
        doctests: Counts::default(),
        table: None,
    };
    let done = if options.quick { run.quick() } else { run.all() };
    if let Err(error) = &done {
        if error.is::<Interrupted>() {
            return done.map(|()| ExitCode::FAILURE);
        }
        eprintln!("error: {error:#}\n");
    }
    if let Some(table) = &run.table {
        println!("{}", table.to_text(&run.names()));
    }
    println!("{}", run.steps.times());
    run.counts += run.doctests;
    println!("{}", run.counts);
    Ok(if done.is_ok() && !run.steps.failed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tested(options: &Options) -> Vec<&'static Adapter> {
    let possible = |adapter: &&Adapter| adapter.brokers.is_empty() || !(options.no_brokers || options.quick);
    adapters::chosen(&options.only).filter(possible).collect()
}

struct Run {
    workspace: Workspace,
    interrupt: Interrupt,
    tested: Vec<&'static Adapter>,
    /// Where the conformance suite writes what became of its cases.
    results: PathBuf,
    steps: Steps,
    bless: bool,
    counts: Counts,
    doctests: Counts,
    table: Option<Table>,
}

impl Run {
    fn names(&self) -> Vec<&'static str> {
        self.tested.iter().map(|adapter| adapter.name).collect()
    }

    fn quick(&mut self) -> Result<()> {
        let Self { workspace, interrupt, steps, .. } = &mut *self;
        steps.step("tools", || tools::install(workspace, interrupt).map(|()| true))?;
        self.tests(Needs::Nothing, None)
    }

    fn all(&mut self) -> Result<()> {
        let brokers: Vec<_> = self.tested.iter().flat_map(|adapter| adapter.brokers).copied().collect();
        let Self { workspace, interrupt, steps, .. } = &mut *self;
        steps.step("tools", || tools::install(workspace, interrupt).map(|()| true))?;
        self.checks()?;
        self.tests(Needs::Nothing, None)?;
        self.doctests()?;
        if !brokers.is_empty() {
            let mut set = None;
            let Self { workspace, interrupt, steps, .. } = &mut *self;
            steps.step(&format!("brokers: {}", brokers.join(", ")), || {
                set = Some(Set::up(workspace, interrupt, "test", &brokers)?);
                Ok(true)
            })?;
            self.tests(Needs::Brokers, set.as_ref())?;
        }
        self.nothing_skipped()?;
        let Self { workspace, interrupt, steps, .. } = &mut *self;
        steps.step("simulation", || simulate::short(workspace, interrupt))?;
        self.faults()?;
        self.conformance()
    }

    /// What needs no test to be run.
    fn checks(&mut self) -> Result<()> {
        self.cargo("format", &["fmt", "--all", "--check"])?;
        self.cargo(
            "clippy",
            &["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"],
        )?;
        let deny = ["deny", "--workspace", "--all-features", "check", "--hide-inclusion-graph"];
        self.cargo("licences, bans, sources", &[&deny[..], &["licenses", "bans", "sources"]].concat())?;
        self.advisories(&[&deny[..], &["advisories"]].concat())?;
        let Self { workspace, interrupt, steps, .. } = &mut *self;
        steps.step("rustdoc", || docs::rustdoc(workspace, interrupt))
    }

    /// The database of advisories lies on a server of its own. Where that can't be reached, nothing is known
    /// about advisories, and the table says so; an old copy would only look like an answer.
    fn advisories(&mut self, check: &[&str]) -> Result<()> {
        let Self { workspace, interrupt, steps, .. } = self;
        steps.step("advisories", || {
            if !run(interrupt, &mut workspace.cargo(["deny", "fetch", "db"]))? {
                eprintln!("the database of advisories can't be fetched: advisories are NOT CHECKED");
                return Ok(Verdict::Unknown);
            }
            Ok(run(interrupt, &mut workspace.cargo(check.iter().copied()))?.into())
        })
    }

    fn cargo(&mut self, title: &str, arguments: &[&str]) -> Result<()> {
        let Self { workspace, interrupt, steps, .. } = self;
        steps.step(title, || run(interrupt, &mut workspace.cargo(arguments.iter().copied())))
    }

    /// The tests that need nothing, without a broker to be found; or those that are ignored otherwise, on brokers.
    fn tests(&mut self, needs: Needs, set: Option<&Set>) -> Result<()> {
        let Self { workspace, interrupt, steps, counts, results, tested, .. } = self;
        let nextest = Nextest::new(workspace, adapters::filter(tested));
        steps.step(needs.title(), || {
            if needs == Needs::Nothing {
                // results of an earlier run must not be counted
                remove(results)?;
                fs::create_dir_all(&*results)
                    .with_context(|| format!("{} could not be made", results.display()))?;
            }
            let mut command = nextest.command("run", needs);
            tell(&mut command, set);
            command.env("POSTRIDER_CONFORMANCE_DIR", &*results);
            let (passed, report) = nextest.run(interrupt, &mut command)?;
            if let Some(report) = report {
                *counts += Counts::from_junit(&report)?;
            }
            Ok(passed)
        })
    }

    /// A test that no step ran: a failure where all adapters are tested.
    fn nothing_skipped(&mut self) -> Result<()> {
        let Self { workspace, interrupt, steps, counts, tested, .. } = self;
        let nextest = Nextest::new(workspace, adapters::filter(tested));
        steps.step("no test is left out", || {
            let mut list = nextest.command("list", Needs::Either);
            let (status, list) = interrupt.read(list.args(["--message-format", "json"]), false)?;
            if !status.success() {
                return Ok(false);
            }
            let (all, skipped) = Counts::of_list(&list)?;
            *counts += skipped;
            let ran = counts.ran();
            if ran < all {
                eprintln!("{ran} of {all} tests were run: a runner ended before its time");
            }
            // with `--only` or `--no-brokers` some are left out on purpose
            let complete = tested.len() < ADAPTERS.len() || skipped == Counts::default();
            if !complete {
                eprintln!("tests were left out though all adapters are tested: {skipped}");
            }
            Ok(ran >= all && complete)
        })
    }

    fn doctests(&mut self) -> Result<()> {
        let Self { workspace, interrupt, steps, doctests, .. } = self;
        steps.step("documentation's tests", || {
            let mut command = workspace.cargo(["test", "--doc", "--workspace", "--all-features"]);
            tell(&mut command, None);
            eprintln!("{}", typed(&command));
            let (status, output) = interrupt.read(&mut command, true)?;
            *doctests += Counts::from_libtest(&output);
            Ok(status.success())
        })
    }

    fn faults(&mut self) -> Result<()> {
        let Self { workspace, interrupt, steps, tested, .. } = self;
        // an embedded broker ends with its process: there is nothing to be killed
        for adapter in tested.iter().filter(|adapter| !adapter.brokers.is_empty()) {
            steps.step(&format!("faults: {}", adapter.name), || {
                faults::short(workspace, interrupt, adapter)
            })?;
        }
        Ok(())
    }

    fn conformance(&mut self) -> Result<()> {
        let names = self.names();
        let all = self.tested.len() == ADAPTERS.len();
        let Self { workspace, steps, results, table, bless, .. } = self;
        steps.step("conformance", || {
            let read = Table::read(results)?;
            read.write(&workspace.target.join("conformance.json"))?;
            let mut complaints = read.complaints(&names);
            // a part of the adapters is a part of the page
            if all && complaints.is_empty() {
                complaints.extend(read.settle_page(&workspace.root.join(PAGE), *bless)?);
            }
            for complaint in &complaints {
                eprintln!("{complaint}");
            }
            *table = Some(read);
            Ok(complaints.is_empty())
        })
    }
}

/// Says what is run, and runs it.
fn run(interrupt: &Interrupt, command: &mut Command) -> Result<bool> {
    eprintln!("{}", typed(command));
    Ok(interrupt.run(command)?.success())
}

/// Passes the variables of the running brokers and removes the caller's. A test must not reach another broker.
pub(crate) fn tell(command: &mut Command, set: Option<&Set>) {
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("POSTRIDER_")) {
            command.env_remove(name);
        }
    }
    if let Some(set) = set {
        set.tell(command);
    }
}

/// Removes a file or a folder that may be there.
pub(crate) fn remove(path: &std::path::Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} could not be removed", path.display()))
        }
        _ => Ok(()),
    }
}
