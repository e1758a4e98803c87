//! `cargo xtask bench`: builds the benches as they are shipped and runs them.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::Args;

use crate::house::House;
use crate::interrupt::Interrupt;

/// What to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Arguments of the bench: `--messages N`, `--rounds N`, `--json FILE`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs them; their exit code is ours.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let (house, interrupt) = (House::find()?, Interrupt::install()?);
    let mut build = house.cargo(["build", "--release", "--package", "postrider-bench"]);
    if !interrupt.run(&mut build)?.success() {
        bail!("the benches could not be built");
    }
    let mut bench = Command::new(house.target.join("release").join("postrider-bench"));
    let status = interrupt.run(bench.args(&options.rest))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
