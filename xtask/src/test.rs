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
use crate::house::House;
use crate::interrupt::{Interrupt, Interrupted, typed};
use crate::set::Set;
use crate::steps::{Steps, Verdict};
use crate::{docs, faults, fuzz, instructions, simulate, tools};

/// The book's page of what the conformance suite found.
const PAGE: &str = "docs/src/brokers/conformance.md";
/// nextest's profile; its report lies in a folder of that name.
const PROFILE: &str = "ci";

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
    /// Only nextest, only what needs no broker: for the inner loop
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
    let house = House::find()?;
    let mut run = Run {
        results: house.target.join("conformance"),
        house,
        interrupt: Interrupt::install()?,
        tested: tested(options),
        steps: Steps::new(options.keep_going),
        bless: options.bless,
        counts: Counts::default(),
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
    println!("{}", run.counts);
    Ok(if done.is_ok() && !run.steps.failed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tested(options: &Options) -> Vec<&'static Adapter> {
    let wanted = |adapter: &&Adapter| match &*options.only {
        [] => true,
        only => only.iter().any(|name| name == adapter.name),
    };
    let possible = |adapter: &&Adapter| adapter.brokers.is_empty() || !(options.no_brokers || options.quick);
    ADAPTERS.iter().filter(wanted).filter(possible).collect()
}

struct Run {
    house: House,
    interrupt: Interrupt,
    tested: Vec<&'static Adapter>,
    /// Where the conformance suite writes what became of its cases.
    results: PathBuf,
    steps: Steps,
    bless: bool,
    counts: Counts,
    table: Option<Table>,
}

impl Run {
    fn names(&self) -> Vec<&'static str> {
        self.tested.iter().map(|adapter| adapter.name).collect()
    }

    fn quick(&mut self) -> Result<()> {
        let Self { house, interrupt, steps, .. } = &mut *self;
        steps.step("tools", || tools::install(house, interrupt).map(|()| true))?;
        self.nextest(None)
    }

    fn all(&mut self) -> Result<()> {
        let brokers: Vec<_> = self.tested.iter().flat_map(|adapter| adapter.brokers).copied().collect();
        let mut set = None;
        let Self { house, interrupt, steps, .. } = &mut *self;
        steps.step("tools", || tools::install(house, interrupt).map(|()| true))?;
        let title = if brokers.is_empty() {
            "no brokers".to_owned()
        } else {
            format!("brokers: {}", brokers.join(", "))
        };
        steps.step(&title, || {
            set = Some(Set::up(house, interrupt, "test", &brokers)?);
            Ok(true)
        })?;
        self.checks()?;
        self.nextest(set.as_ref())?;
        self.doctests(set.as_ref())?;
        // the fault run has brokers of its own; these have done their work
        drop(set);
        let Self { house, interrupt, steps, .. } = &mut *self;
        steps.step("instructions", || instructions::compare(house, interrupt))?;
        steps.step("simulation", || simulate::short(house, interrupt))?;
        steps.step("fuzz", || fuzz::short(house, interrupt))?;
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
        let features: Vec<_> = self.house.features("postrider")?.map(str::to_owned).collect();
        for feature in &features {
            let check = ["check", "--package", "postrider", "--no-default-features", "--features", feature];
            self.cargo(&format!("feature alone: {feature}"), &check)?;
        }
        let Self { house, interrupt, steps, .. } = &mut *self;
        steps.step("rustdoc", || docs::rustdoc(house, interrupt))
    }

    /// The database of advisories lies on a server of its own. Where that can't be reached, nothing is known
    /// about advisories, and the table says so; an old copy would only look like an answer.
    fn advisories(&mut self, check: &[&str]) -> Result<()> {
        let Self { house, interrupt, steps, .. } = self;
        steps.step("advisories", || {
            if !run(interrupt, &mut house.cargo(["deny", "fetch", "db"]))? {
                eprintln!("the database of advisories can't be fetched: advisories are NOT CHECKED");
                return Ok(Verdict::Unknown);
            }
            Ok(run(interrupt, &mut house.cargo(check.iter().copied()))?.into())
        })
    }

    fn cargo(&mut self, title: &str, arguments: &[&str]) -> Result<()> {
        let Self { house, interrupt, steps, .. } = self;
        steps.step(title, || run(interrupt, &mut house.cargo(arguments.iter().copied())))
    }

    fn nextest(&mut self, set: Option<&Set>) -> Result<()> {
        let filter = adapters::filter(&self.tested);
        let Self { house, interrupt, steps, counts, results, .. } = self;
        let report = house.target.join("nextest").join(PROFILE).join("junit.xml");
        let command = |verb| {
            let mut command =
                house.cargo(["nextest", verb, "--workspace", "--all-features", "--profile", PROFILE]);
            command.args(filter.iter().flat_map(|filter| ["--filterset", filter.as_str()]));
            tell(&mut command, set);
            command.env("POSTRIDER_CONFORMANCE_DIR", &*results);
            command
        };
        steps.step("tests", || {
            // what an earlier run left must not be counted
            remove(&report)?;
            remove(results)?;
            fs::create_dir_all(&*results)
                .with_context(|| format!("{} could not be made", results.display()))?;
            let passed = run(interrupt, &mut command("run"))?;
            if let Ok(report) = fs::read_to_string(&report) {
                *counts += Counts::from_junit(&report)?;
                let (_, list) = interrupt.read(command("list").args(["--message-format", "json"]), false)?;
                *counts += Counts::skipped_in_list(&list)?;
            }
            Ok(passed)
        })
    }

    fn doctests(&mut self, set: Option<&Set>) -> Result<()> {
        let Self { house, interrupt, steps, counts, .. } = self;
        steps.step("documentation's tests", || {
            let mut command = house.cargo(["test", "--doc", "--workspace", "--all-features"]);
            tell(&mut command, set);
            eprintln!("{}", typed(&command));
            let (status, output) = interrupt.read(&mut command, true)?;
            *counts += Counts::from_libtest(&output);
            Ok(status.success())
        })
    }

    fn faults(&mut self) -> Result<()> {
        let Self { house, interrupt, steps, tested, .. } = self;
        // an embedded broker ends with its process: there is nothing to be killed
        for adapter in tested.iter().filter(|adapter| !adapter.brokers.is_empty()) {
            steps.step(&format!("faults: {}", adapter.name), || faults::short(house, interrupt, adapter))?;
        }
        Ok(())
    }

    fn conformance(&mut self) -> Result<()> {
        let names = self.names();
        let all = self.tested.len() == ADAPTERS.len();
        let Self { house, steps, results, table, bless, .. } = self;
        steps.step("conformance", || {
            let read = Table::read(results)?;
            read.write(&house.target.join("conformance.json"))?;
            let mut complaints = read.complaints(&names);
            // a part of the adapters is a part of the page
            if all && complaints.is_empty() {
                complaints.extend(read.settle_page(&house.root.join(PAGE), *bless)?);
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

/// Tells a program about the brokers that are up, and takes from it what others told us: a test
/// must not reach a broker that wasn't brought up for it.
fn tell(command: &mut Command, set: Option<&Set>) {
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
fn remove(path: &std::path::Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} could not be removed", path.display()))
        }
        _ => Ok(()),
    }
}
