//! `cargo xtask simulate`: runs the simulation, a program of the package `postrider-simulation`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Result, bail};
use clap::Args;

use crate::interrupt::Interrupt;
use crate::steps::exit_code;
use crate::workspace::Workspace;

/// How many seeds run as a step of `cargo xtask test`.
const SHORT: u32 = 1_000;
/// How many seeds run as a step of `cargo xtask nightly`.
const LONG: u32 = 10_000;
/// The program's name.
const PROGRAM: &str = "simulate";

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// Arguments of the simulation: `--seeds N`, `--from N`, `--seed S`, `--jobs N`, `--traces DIR`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Runs it; fails if the simulation fails.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let (workspace, interrupt) = (Workspace::find()?, Interrupt::install()?);
    let program = build(&workspace, &interrupt)?;
    let passed = run(&workspace, &interrupt, &program, &options.rest)?;
    Ok(exit_code(passed))
}

/// Some seeds, as a step of `cargo xtask test`: by the program that the tests were built with.
pub(crate) fn short(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let program = workspace.tested(interrupt, PROGRAM)?;
    run(workspace, interrupt, &program, &seeds(SHORT))
}

/// Many seeds, as a step of `cargo xtask nightly`.
pub(crate) fn long(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let program = build(workspace, interrupt)?;
    run(workspace, interrupt, &program, &seeds(LONG))
}

fn seeds(count: u32) -> [String; 2] {
    ["--seeds".to_owned(), count.to_string()]
}

/// Builds it as programs are shipped.
fn build(workspace: &Workspace, interrupt: &Interrupt) -> Result<PathBuf> {
    let mut build = workspace.cargo(["build", "--release", "--package", "postrider-simulation"]);
    if !interrupt.run(&mut build)?.success() {
        bail!("the simulation could not be built");
    }
    Ok(workspace.released(PROGRAM))
}

fn run(workspace: &Workspace, interrupt: &Interrupt, program: &Path, arguments: &[String]) -> Result<bool> {
    let mut simulate = Command::new(program);
    if !arguments.iter().any(|argument| argument.starts_with("--traces")) {
        simulate.arg("--traces").arg(workspace.target.join("simulate"));
    }
    simulate.args(arguments);
    Ok(interrupt.run(&mut simulate)?.success())
}
