//! The tracker of one subscription: what it handed out is settled here, and written down by the member's thread.

use std::sync::Arc;
use std::time::Duration;

use postrider_core::{BoxFuture, Env, Settle, SettleError, Settlement, Token};

use crate::shared::Shared;

/// How long a flush waits for a broker that is away; what it then leaves is written when the broker is back.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) env: Env,
    /// An ephemeral group has no place that could be written down.
    pub(crate) group: bool,
}

impl Settle for Tracker {
    fn settle(&self, batch: &[(Token, Settlement)]) -> Result<(), SettleError> {
        let stale = self.shared.settle(batch);
        if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async {
            if !self.group {
                return Ok(());
            }
            let stale = tokio::select! {
                stale = self.shared.flush() => stale,
                () = self.env.sleep(PATIENCE) => Vec::new(),
            };
            if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
        })
    }
}
