//! cargo-nextest, which runs the workspace's tests: which of them, and its report.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::interrupt::{Interrupt, typed};
use crate::test::remove;
use crate::workspace::Workspace;

/// The profile in `.config/nextest.toml`. The report lies in a folder of that name.
const PROFILE: &str = "ci";

/// What a test needs: those with `#[ignore]` need a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A toolchain.
    Nothing,
    /// A broker as well.
    Brokers,
    /// Both kinds of tests.
    Either,
}

impl Needs {
    /// The name of the step.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Nothing => "tests without brokers",
            Self::Brokers => "tests on brokers",
            Self::Either => "tests",
        }
    }

    /// What `--run-ignored` is given.
    fn run_ignored(self) -> &'static str {
        match self {
            Self::Nothing => "default",
            Self::Brokers => "only",
            Self::Either => "all",
        }
    }
}

/// Commands of nextest for the whole workspace, with a filter.
pub(crate) struct Nextest<'a> {
    workspace: &'a Workspace,
    filter: Option<String>,
    report: PathBuf,
}

impl<'a> Nextest<'a> {
    /// The tests that the filter lets through, or all.
    pub(crate) fn new(workspace: &'a Workspace, filter: Option<String>) -> Self {
        let report = workspace.target.join("nextest").join(PROFILE).join("junit.xml");
        Self { workspace, filter, report }
    }

    /// A command: `run` or `list`.
    pub(crate) fn command(&self, verb: &str, needs: Needs) -> Command {
        let mut command = self.workspace.cargo(["nextest", verb, "--workspace", "--all-features"]);
        command.args(["--profile", PROFILE, "--run-ignored", needs.run_ignored()]);
        command.args(self.filter.iter().flat_map(|filter| ["--filterset", filter.as_str()]));
        command
    }

    /// Runs tests; answers whether all passed, and the report in JUnit's format if there is one.
    pub(crate) fn run(&self, interrupt: &Interrupt, command: &mut Command) -> Result<(bool, Option<String>)> {
        // the report of an earlier run must not be taken for this one's
        remove(&self.report)?;
        eprintln!("{}", typed(command));
        let passed = interrupt.run(command)?.success();
        Ok((passed, fs::read_to_string(&self.report).ok()))
    }
}
