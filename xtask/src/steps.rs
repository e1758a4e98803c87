//! Steps of a longer command, one after the other, each with its time.

use std::process::{ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::interrupt::Interrupted;

/// The steps done so far.
pub(crate) struct Steps {
    done: Vec<Step>,
    keep_going: bool,
}

struct Step {
    name: String,
    time: Duration,
    verdict: Verdict,
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It holds.
    Passed,
    /// It doesn't hold.
    Failed,
    /// It could not be looked at here, for a reason that was said; it neither holds nor fails.
    Unknown,
}

impl From<bool> for Verdict {
    fn from(passed: bool) -> Self {
        if passed { Self::Passed } else { Self::Failed }
    }
}

impl Steps {
    /// None yet. With `keep_going` a failed step doesn't end the command.
    pub(crate) fn new(keep_going: bool) -> Self {
        Self { done: Vec::new(), keep_going }
    }

    /// Does a step.
    ///
    /// # Errors
    ///
    /// The step failed or could not be done, and the command is not to go on; or it was interrupted.
    pub(crate) fn step<V: Into<Verdict>>(
        &mut self,
        name: &str,
        step: impl FnOnce() -> Result<V>,
    ) -> Result<()> {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = step().map(Into::into);
        let time = start.elapsed();
        let verdict = *result.as_ref().unwrap_or(&Verdict::Failed);
        eprintln!("== {name}: {}, {:.1} s\n", word(verdict), time.as_secs_f64());
        self.done.push(Step { name: name.to_owned(), time, verdict });
        match result {
            Ok(Verdict::Failed) if !self.keep_going => bail!("step failed: {name}"),
            Ok(_) => Ok(()),
            Err(error) if self.keep_going && !error.is::<Interrupted>() => {
                eprintln!("error: {error:#}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a step has failed so far.
    pub(crate) fn failed(&self) -> bool {
        self.done.iter().any(|step| step.verdict == Verdict::Failed)
    }

    /// The times, a line a step.
    pub(crate) fn times(&self) -> String {
        let lines = self.done.iter().map(|step| {
            format!("{:>8.1} s  {:<11}  {}\n", step.time.as_secs_f64(), word(step.verdict), step.name)
        });
        lines.collect()
    }
}

/// The exit code of a command that passed, or did not.
pub(crate) fn exit_code(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The exit code of a command that passes on the one of a program.
pub(crate) fn exit_code_of(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "ok",
        Verdict::Failed => "FAILED",
        Verdict::Unknown => "NOT CHECKED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_ends_the_command() {
        let mut steps = Steps::new(false);
        steps.step("one", || Ok(true)).expect("it passed");
        steps.step("two", || Ok(false)).expect_err("it failed");
        assert!(steps.failed());
    }

    #[test]
    fn to_keep_going_is_not_to_forget() {
        let mut steps = Steps::new(true);
        steps.step("one", || Ok(false)).expect("the next is to be done");
        steps.step("two", || -> Result<bool> { bail!("it can't be done") }).expect("the next is to be done");
        steps.step("three", || Ok(true)).expect("it passed");
        assert!(steps.failed());
        assert_eq!(steps.times().lines().filter(|line| line.contains("FAILED")).count(), 2);
    }

    #[test]
    fn an_interrupt_ends_the_command_whatever_was_asked() {
        let mut steps = Steps::new(true);
        steps.step("one", || -> Result<bool> { Err(Interrupted.into()) }).expect_err("it was interrupted");
    }

    #[test]
    fn what_could_not_be_looked_at_is_neither_a_failure_nor_ok() {
        let mut steps = Steps::new(false);
        steps.step("one", || Ok(Verdict::Unknown)).expect("the next is to be done");
        assert!(!steps.failed());
        assert!(steps.times().contains("NOT CHECKED"));
    }
}
