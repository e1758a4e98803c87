//! `cargo xtask simulate`: builds the simulation as programs are shipped and runs it.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::Args;

use crate::house::House;
use crate::interrupt::Interrupt;

/// How many seeds run as a step of `cargo xtask test`.
const SHORT: &str = "5000";

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Arguments of the simulation: `--seeds N`, `--from N`, `--seed S`, `--jobs N`, `--traces DIR`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs it; its exit code is ours.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let passed = run(&House::find()?, &Interrupt::install()?, &options.rest)?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Fewer seeds, as a step of `cargo xtask test`.
pub(crate) fn short(house: &House, interrupt: &Interrupt) -> Result<bool> {
    run(house, interrupt, &["--seeds".to_owned(), SHORT.to_owned()])
}

fn run(house: &House, interrupt: &Interrupt, arguments: &[String]) -> Result<bool> {
    let mut build = house.cargo(["build", "--release", "--package", "postrider-simulation"]);
    if !interrupt.run(&mut build)?.success() {
        bail!("the simulation could not be built");
    }
    let mut simulate = Command::new(house.target.join("release").join("simulate"));
    if !arguments.iter().any(|argument| argument.starts_with("--traces")) {
        simulate.arg("--traces").arg(house.target.join("simulate"));
    }
    simulate.args(arguments);
    Ok(interrupt.run(&mut simulate)?.success())
}
