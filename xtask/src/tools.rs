//! The cargo tools that the tests need.

use std::process::{ExitCode, Stdio};

use anyhow::{Result, bail};

use crate::house::House;
use crate::interrupt::Interrupt;

/// A tool that is installed where it is missing; a version that is there already is taken as it is.
struct Tool {
    /// `cargo NAME`, of the package `cargo-NAME`.
    name: &'static str,
    /// The version to install: known to build with the workspace's Rust.
    version: &'static str,
}

const TOOLS: &[Tool] =
    &[Tool { name: "nextest", version: "0.9.151" }, Tool { name: "deny", version: "0.20.2" }];

/// `cargo xtask tools`
pub(crate) fn main() -> Result<ExitCode> {
    install(&House::find()?, &Interrupt::install()?)?;
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing, outside the target directory: a cleaned workspace still has it.
pub(crate) fn install(house: &House, interrupt: &Interrupt) -> Result<()> {
    for Tool { name, version } in TOOLS {
        let mut ask = house.cargo([name, "--version"]);
        if interrupt.run(ask.stdout(Stdio::null()).stderr(Stdio::null()))?.success() {
            continue;
        }
        let package = format!("cargo-{name}");
        eprintln!("installing {package} {version}");
        let mut install = house.cargo(["install", "--locked", "--version", version, &package]);
        if !interrupt.run(install.env_remove("CARGO_TARGET_DIR"))?.success() {
            bail!("{package} could not be installed; see above, or install it by hand");
        }
    }
    Ok(())
}
