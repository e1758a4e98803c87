//! The project's script, which kills, starts, pauses and resumes brokers. `cargo xtask faults` says where it is and which set of brokers is meant.

use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use tokio::process::Command;

/// Calls the script: `kill`, `start`, `pause` or `resume`.
pub(super) async fn brokers(verb: &str, broker: &str) -> Result<()> {
    let script = std::env::var_os("POSTRIDER_TEST_BROKERS_SCRIPT")
        .context("POSTRIDER_TEST_BROKERS_SCRIPT isn't set; start the fault run by `cargo xtask faults`")?;
    let mut call = Command::new("bash");
    call.arg(script).args([verb, broker]).stdin(Stdio::null()).stdout(Stdio::null());
    let status = call.status().await.with_context(|| format!("bash can't be run to {verb} {broker}"))?;
    if !status.success() {
        bail!("{broker} could not be brought to {verb}; its log: cargo xtask brokers log {broker}");
    }
    Ok(())
}
