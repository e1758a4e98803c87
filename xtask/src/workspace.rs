//! The workspace that a command works on: its folders, its packages, and cargo run in it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::interrupt::Interrupt;
use crate::tools;

/// The workspace that the command was called in.
pub(crate) struct Workspace {
    /// The workspace's root.
    pub(crate) root: PathBuf,
    /// The target directory, wherever the environment or a configuration puts it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            workspace_root: PathBuf,
            target_directory: PathBuf,
        }
        let output = Command::new(cargo_program())
            .args(["metadata", "--no-deps", "--format-version=1"])
            .output()
            .context("cargo could not be run to ask where the workspace is")?;
        if !output.status.success() {
            bail!(
                "cargo could not read the workspace:\n{}",
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        let metadata: Metadata = serde_json::from_slice(&output.stdout)
            .context("the output of `cargo metadata` could not be read")?;
        Ok(Self { root: metadata.workspace_root, target: metadata.target_directory })
    }

    /// A `cargo` command, run at the root. One of the pinned tools is called by its path: a changed `PATH` would make cargo build
    /// the clients' C libraries again.
    pub(crate) fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut arguments = arguments.into_iter().peekable();
        let tool = arguments.peek().and_then(|subcommand| tools::program(subcommand));
        let mut command = Command::new(tool.map_or_else(cargo_program, Into::into));
        command.args(arguments).current_dir(&self.root);
        command
    }

    /// Builds programs that are measured or put under faults, as they would be shipped. All by the same packages and features,
    /// whichever are asked for, so that cargo doesn't build the clients anew for each.
    pub(crate) fn release(&self, programs: &[&str]) -> Command {
        let mut command = self.cargo(["build", "--release", "--all-features"]);
        command.args(["--package", "postrider-bench", "--package", "postrider-system-tests"]);
        command.args(programs.iter().flat_map(|program| ["--bin", program]));
        command
    }

    /// A program as the tests have it. Where the tests have been run, nothing is left to build.
    pub(crate) fn tested(&self, interrupt: &Interrupt, program: &str) -> Result<PathBuf> {
        let mut build = self.cargo(["test", "--workspace", "--all-features", "--no-run", "--quiet"]);
        if !interrupt.run(&mut build)?.success() {
            bail!("`{program}` could not be built");
        }
        Ok(self.target.join("debug").join(program))
    }

    /// A program as it is shipped, after [`Workspace::release`].
    pub(crate) fn released(&self, program: &str) -> PathBuf {
        self.target.join("release").join(program)
    }

    /// The script that fetches, starts, stops and harms brokers.
    pub(crate) fn brokers_script(&self) -> PathBuf {
        self.root.join("xtask").join("brokers.sh")
    }
}

/// Where brokers and tools are kept: outside the workspace, so that a clean checkout has them.
pub(crate) fn cache() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("there is no home directory to keep brokers and tools in; set XDG_CACHE_HOME")?;
    Ok(cache.join("postrider"))
}

/// Where the script keeps the brokers that it fetched. The script has the same default.
pub(crate) fn brokers_home() -> Result<PathBuf> {
    match env::var_os("BROKERS_HOME") {
        Some(home) => Ok(home.into()),
        None => Ok(cache()?.join("brokers")),
    }
}

/// The cargo that runs this command, or the one on the path.
fn cargo_program() -> std::ffi::OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
