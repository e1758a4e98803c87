//! Where things are: the workspace, its target directory, the script of the brokers; as cargo tells it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// The workspace that the command was called in.
pub(crate) struct House {
    /// The workspace's root.
    pub(crate) root: PathBuf,
    /// The target directory, wherever the environment or a configuration puts it.
    pub(crate) target: PathBuf,
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    features: std::collections::BTreeMap<String, Vec<String>>,
}

impl House {
    /// Asks cargo.
    pub(crate) fn find() -> Result<Self> {
        #[derive(Deserialize)]
        struct Metadata {
            workspace_root: PathBuf,
            target_directory: PathBuf,
            packages: Vec<Package>,
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
        Ok(Self {
            root: metadata.workspace_root,
            target: metadata.target_directory,
            packages: metadata.packages,
        })
    }

    /// A `cargo` command, run at the root.
    pub(crate) fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = Command::new(cargo_program());
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

    /// The features of a package, without `default`: the manifest is their one list.
    pub(crate) fn features(&self, package: &str) -> Result<impl Iterator<Item = &str>> {
        let package = self
            .packages
            .iter()
            .find(|each| each.name == package)
            .with_context(|| format!("the workspace has no package `{package}`"))?;
        Ok(package.features.keys().map(String::as_str).filter(|feature| *feature != "default"))
    }

    /// The script that fetches, starts, stops and harms brokers.
    pub(crate) fn brokers_script(&self) -> PathBuf {
        self.root.join("xtask").join("brokers.sh")
    }
}

/// Where the script keeps what it fetched: outside the workspace, so that a clean checkout has it.
/// The same default stands in the script.
pub(crate) fn brokers_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("BROKERS_HOME") {
        return Ok(home.into());
    }
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cache")))
        .context("there is no home directory to keep brokers in; set BROKERS_HOME")?;
    Ok(cache.join(Path::new("postrider/brokers")))
}

/// The cargo that runs this command, or the one on the path.
fn cargo_program() -> std::ffi::OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
