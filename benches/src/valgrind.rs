//! Instructions of a process, counted by valgrind's callgrind: what else the machine does is not among them.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Says at once where there is no valgrind, before anything is prepared.
///
/// # Errors
/// When it can't be run.
pub fn is_there() -> Result<()> {
    let found =
        Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(
        found.is_ok_and(|status| status.success()),
        "valgrind, which counts instructions, could not be run; install it (`apt-get install valgrind`)"
    );
    Ok(())
}

/// The program under callgrind, with memory laid out alike in each run where the system lets us say so: what an allocator does
/// depends on it. Its threads take turns fairly, or one that looks for what another makes could look for long.
pub fn counting(program: &Path) -> Command {
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
///
/// # Errors
/// When the program fails, with all that it said.
pub fn run(command: &mut Command) -> Result<(Output, u64)> {
    let output = command.stdin(Stdio::null()).output().context("valgrind could not be run")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it failed under valgrind:\n{told}");
    let counted = collected(&told).with_context(|| format!("valgrind told no count:\n{told}"))?;
    Ok((output, counted))
}

/// The last word of callgrind: `==7== Collected : 1234`.
fn collected(told: &str) -> Option<u64> {
    told.lines().find_map(|line| line.split_once("Collected : "))?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_among_other_words() {
        let told = "==7== Events    : Ir\n==7== Collected : 123456\n==7== \n==7== I   refs:      123,456\n";
        assert_eq!(collected(told), Some(123_456));
        assert_eq!(collected("==7== Collected : no number"), None);
        assert_eq!(collected("error: nothing answers"), None);
    }
}
