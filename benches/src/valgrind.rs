//! Instructions of a process, counted by valgrind's callgrind: what else the machine does is not among them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};

const MISSING: &str = "valgrind could not be run; install it (`apt-get install valgrind`)";

/// The program under callgrind, with memory laid out alike in each run where the system lets us say so: what an allocator does
/// depends on it. Its threads take turns fairly, or one that looks for what another makes could look for long.
pub(crate) fn counting(program: &Path) -> Command {
    let alike = Command::new("setarch").args(["-R", "true"]).stderr(Stdio::null()).status();
    let mut command = if alike.is_ok_and(|status| status.success()) {
        let mut command = Command::new("setarch");
        command.args(["-R", "valgrind"]);
        command
    } else {
        Command::new("valgrind")
    };
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--fair-sched=try"]).arg(program);
    command
}

/// Runs what [`counting`] made: what it put out, and its instructions.
pub(crate) fn run(command: &mut Command) -> Result<(Output, u64)> {
    let output = command.stdin(Stdio::null()).output().context(MISSING)?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "it failed under valgrind (is it installed? `apt-get install valgrind`):\n{told}"
    );
    let collected = told.lines().find_map(|line| line.split_once("Collected : "));
    let (_, number) = collected.with_context(|| format!("valgrind told no count:\n{told}"))?;
    let counted = number.trim().parse().with_context(|| format!("`{number}` is no count"))?;
    Ok((output, counted))
}
