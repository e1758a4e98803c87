//! `cargo xtask fuzz`: builds the targets of `fuzz/` with libFuzzer and the compiler's coverage counters, and runs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::interrupt::Interrupt;
use crate::steps::exit_code;
use crate::workspace::Workspace;

/// What libFuzzer needs of the compiler: the counters it steers by. They need no nightly; a sanitizer would, and code without `unsafe`
/// has little for one to find.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1";
/// How long each target runs unless said otherwise, in seconds.
const SECONDS: u32 = 60;

/// What to run.
#[derive(Args)]
pub(crate) struct Options {
    /// This target alone; all unless named
    target: Option<String>,
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = SECONDS)]
    seconds: u32,
    /// Run one input again instead
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// Keep of the inputs that were found those that reach something new: written into the target's folder of `fuzz/corpus`
    #[arg(long, requires = "target")]
    keep: bool,
}

/// Runs them; ends with a failure when an input was found on which a target fails.
pub(crate) fn main(options: &Options) -> Result<ExitCode> {
    let (workspace, interrupt) = (Workspace::find()?, Interrupt::install()?);
    let targets = targets(&workspace)?;
    let chosen: Vec<_> = match &options.target {
        Some(name) if targets.contains(name) => vec![name.clone()],
        Some(name) => bail!("there is no target `{name}`; there are {}", targets.join(", ")),
        None => targets,
    };
    let fuzz = Fuzz { program: build(&workspace, &interrupt)?, workspace: &workspace, interrupt: &interrupt };
    if let Some(input) = &options.input {
        let input = input.canonicalize().with_context(|| format!("there is no input {}", input.display()))?;
        let passed = fuzz.again(&chosen[0], &input)?;
        return Ok(exit_code(passed));
    }
    let passed = fuzz.all(&chosen, options.seconds)?;
    if passed && options.keep {
        fuzz.keep(&chosen[0])?;
    }
    Ok(exit_code(passed))
}

/// Each target for its usual time, as a step of `cargo xtask nightly`.
pub(crate) fn all(workspace: &Workspace, interrupt: &Interrupt) -> Result<bool> {
    let fuzz = Fuzz { program: build(workspace, interrupt)?, workspace, interrupt };
    fuzz.all(&targets(workspace)?, SECONDS)
}

/// Each target has a folder of inputs; that is their one list.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let corpus = workspace.root.join("fuzz").join("corpus");
    let folders = fs::read_dir(&corpus).with_context(|| format!("{} can't be read", corpus.display()))?;
    let mut names = Vec::new();
    for folder in folders {
        names.push(folder?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Builds the program into a folder of its own, so that the flags don't undo other builds. Named as a target, this machine's own
/// triple keeps them from build scripts and macros.
fn build(workspace: &Workspace, interrupt: &Interrupt) -> Result<PathBuf> {
    let output =
        Command::new("rustc").arg("-vV").output().context("rustc could not be asked for its host")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    let folder = workspace.target.join("fuzz");
    let mut build = workspace.cargo([
        "build",
        "--release",
        "--package",
        "postrider-fuzz",
        "--bin",
        "fuzz",
        "--target",
        host,
    ]);
    build.arg("--target-dir").arg(&folder).env("RUSTFLAGS", FLAGS);
    // a sum that overflows is a finding, too
    build
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
        .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true");
    if !interrupt.run(&mut build)?.success() {
        bail!("the fuzz targets could not be built");
    }
    Ok(folder.join(host).join("release").join("fuzz"))
}

struct Fuzz<'a> {
    program: PathBuf,
    workspace: &'a Workspace,
    interrupt: &'a Interrupt,
}

impl Fuzz<'_> {
    /// What was found lies below `target/`, what is kept in the repository.
    fn found(&self, target: &str) -> PathBuf {
        self.workspace.target.join("fuzz").join("found").join(target)
    }

    fn kept(&self, target: &str) -> PathBuf {
        self.workspace.root.join("fuzz").join("corpus").join(target)
    }

    fn command(&self, target: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.env("POSTRIDER_FUZZ_TARGET", target).current_dir(&self.workspace.root);
        command
    }

    fn all(&self, targets: &[String], seconds: u32) -> Result<bool> {
        let mut failed = Vec::new();
        for target in targets {
            eprintln!("-- {target}, {seconds} s");
            if !self.run(target, seconds)? {
                failed.push(target.as_str());
            }
        }
        if !failed.is_empty() {
            eprintln!("inputs were found on which these fail: {}", failed.join(", "));
        }
        Ok(failed.is_empty())
    }

    fn run(&self, target: &str, seconds: u32) -> Result<bool> {
        let (found, crashes) =
            (self.found(target), self.workspace.target.join("fuzz").join("crashes").join(target));
        for folder in [&found, &crashes] {
            fs::create_dir_all(folder).with_context(|| format!("{} could not be made", folder.display()))?;
        }
        let before = names(&crashes)?;
        let mut command = self.command(target);
        command
            .arg(format!("-max_total_time={seconds}"))
            .args([
                "-max_len=4096",
                "-timeout=10",
                "-rss_limit_mb=2048",
                "-verbosity=0",
                "-print_final_stats=1",
            ])
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .args([&found, &self.kept(target)]);
        if self.interrupt.run(&mut command)?.success() {
            return Ok(true);
        }
        for name in names(&crashes)?.into_iter().filter(|name| !before.contains(name)) {
            let input = crashes.join(name);
            eprintln!("target {target} fails on {}", input.display());
            eprintln!("again: cargo xtask fuzz {target} --input {}", input.display());
        }
        Ok(false)
    }

    fn again(&self, target: &str, input: &Path) -> Result<bool> {
        let mut command = self.command(target);
        Ok(self.interrupt.run(command.arg(input))?.success())
    }

    /// libFuzzer takes over only what reaches something that the kept ones don't.
    fn keep(&self, target: &str) -> Result<()> {
        let mut command = self.command(target);
        command.args(["-merge=1", "-max_len=512"]).args([self.kept(target), self.found(target)]);
        if !self.interrupt.run(&mut command)?.success() {
            bail!("the inputs of {target} could not be merged");
        }
        Ok(())
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("{} can't be read", folder.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
