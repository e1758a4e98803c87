//! A set of brokers of a command's own: on free ports, its data below the target directory, taken down on drop.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::brokers::{self, BROKERS};
use crate::interrupt::Interrupt;
use crate::ports;
use crate::workspace::{self, Workspace};

/// The folder of the set's own brokers among the folders of sets.
const SHARED: &str = "shared";

/// Brokers that are up, and all that tests start beside them. `CONTRIBUTING.md` tells tests' authors what they are given.
pub(crate) struct Set {
    script: PathBuf,
    home: PathBuf,
    /// Holds a folder a set: ours, and those that tests make for brokers that they do harm to.
    sets: PathBuf,
    variables: Vec<(String, String)>,
    /// No two commands share `sets`.
    _lock: File,
}

impl Set {
    /// Brings brokers up, with TLS, after wiping what an earlier run may have left.
    ///
    /// `purpose` tells sets apart: one at a time is up for each purpose. A second waits.
    pub(crate) fn up(
        workspace: &Workspace,
        interrupt: &Interrupt,
        purpose: &str,
        names: &[&str],
    ) -> Result<Self> {
        let sets = workspace.target.join(format!("brokers-{purpose}"));
        fs::create_dir_all(&sets).with_context(|| format!("{} could not be made", sets.display()))?;
        let mut set = Self {
            script: workspace.brokers_script(),
            home: workspace::brokers_home()?,
            _lock: lock(&sets.join("lock"), interrupt)?,
            sets,
            variables: Vec::new(),
        };
        for folder in set.folders()? {
            set.call(&folder, &["wipe"])?;
            fs::remove_dir_all(&folder)
                .with_context(|| format!("{} could not be removed", folder.display()))?;
        }
        set.export("POSTRIDER_TEST_BROKERS_SCRIPT", &set.script.clone());
        set.export("POSTRIDER_TEST_BROKERS_SETS", &set.sets.clone());
        set.export("BROKERS_HOME", &set.home.clone());
        set.export("BROKERS_DATA", &set.sets.join(SHARED));
        if !names.is_empty() {
            set.start(interrupt, names)?;
        }
        Ok(set)
    }

    /// Tells a program about the brokers.
    pub(crate) fn tell(&self, command: &mut Command) {
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    /// One of the variables that programs are told.
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(found, _)| found == name).map(|(_, value)| &**value)
    }

    fn start(&mut self, interrupt: &Interrupt, names: &[&str]) -> Result<()> {
        let variables: Vec<_> = BROKERS
            .iter()
            .filter(|broker| names.contains(&broker.name))
            .flat_map(|broker| broker.ports)
            .collect();
        let ports = ports::free(variables.len())?.into_iter().map(|port| port.to_string());
        let shared = self.sets.join(SHARED);
        let mut up = self.command(&shared);
        up.arg("up").args(names).env("BROKERS_TLS", "1").envs(variables.into_iter().zip(ports));
        let wanted = BROKERS.iter().filter(|broker| names.contains(&broker.name));
        up.envs(wanted.flat_map(|broker| broker.settings).copied());
        if !interrupt.run(up.stdout(Stdio::null()))?.success() {
            bail!("brokers could not be brought up: {}", names.join(", "));
        }
        let mut env = self.command(&shared);
        let (status, lines) = interrupt.read(env.arg("env").args(names), false)?;
        if !status.success() {
            bail!("the URLs of the brokers could not be asked for");
        }
        self.variables.extend(exports(&lines));
        Ok(())
    }

    fn export(&mut self, name: &str, value: &Path) {
        self.variables.push((name.to_owned(), value.to_string_lossy().into_owned()));
    }

    /// The folders of all sets that are there.
    fn folders(&self) -> Result<Vec<PathBuf>> {
        let entries =
            fs::read_dir(&self.sets).with_context(|| format!("{} could not be read", self.sets.display()))?;
        Ok(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
    }

    fn command(&self, data: &Path) -> Command {
        let mut command = brokers::script(&self.script);
        command.env("BROKERS_HOME", &self.home).env("BROKERS_DATA", data);
        command
    }

    /// Calls the script to its end, also while the command is being interrupted.
    fn call(&self, data: &Path, arguments: &[&str]) -> Result<()> {
        use std::os::unix::process::CommandExt as _;
        let mut command = self.command(data);
        let status =
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).status()?;
        if !status.success() {
            bail!("`brokers {}` failed on {}", arguments.join(" "), data.display());
        }
        Ok(())
    }
}

impl Drop for Set {
    /// Takes down ours and what tests have left. Logs and data stay until the next run, to be looked at.
    fn drop(&mut self) {
        let folders = self.folders().unwrap_or_default();
        for error in folders.iter().filter_map(|folder| self.call(folder, &["down"]).err()) {
            eprintln!("error: {error:#}");
        }
    }
}

/// Waits for the lock on the folder of sets.
fn lock(path: &Path, interrupt: &Interrupt) -> Result<File> {
    let file = File::create(path).with_context(|| format!("{} could not be made", path.display()))?;
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if !told => {
                told = true;
                eprintln!("waiting for another run that holds {}", path.display());
            }
            Err(TryLockError::WouldBlock) => interrupt.sleep(Duration::from_millis(200))?,
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("{} could not be locked", path.display()));
            }
        }
    }
}

/// What tests are told, from the lines of `brokers env`: `NATS_URL` as `POSTRIDER_TEST_NATS_URL`,
/// `BROKERS_TLS_CA` as `POSTRIDER_TEST_TLS_CA`.
fn exports(lines: &str) -> Vec<(String, String)> {
    lines
        .lines()
        .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
        .map(|(name, value)| {
            let name = name.strip_prefix("BROKERS_").unwrap_or(name);
            (format!("POSTRIDER_TEST_{name}"), value.trim_matches('\'').to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_told_urls_and_certificates() {
        let lines = "export NATS_URL='nats://127.0.0.1:4222'\nexport BROKERS_TLS_CA='/tls/ca.pem'\n";
        let told = exports(lines);
        let expected =
            [("POSTRIDER_TEST_NATS_URL", "nats://127.0.0.1:4222"), ("POSTRIDER_TEST_TLS_CA", "/tls/ca.pem")];
        assert_eq!(told, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
}
