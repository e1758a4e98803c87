//! The tracker of one subscription: what it handed out is settled here, and told to the server by `acks`.

use std::sync::Arc;

use postrider_core::{BoxFuture, Env, Settle, SettleError, Settlement, Token};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::acks::{self, Flush};
use crate::shared::Shared;

#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) flush: mpsc::Sender<Flush>,
    pub(crate) env: Env,
    /// The broker's: timers of delayed messages end with it.
    pub(crate) tasks: TaskTracker,
}

impl Settle for Tracker {
    fn settle(&self, batch: &[(Token, Settlement)]) -> Result<(), SettleError> {
        let mut delayed = Vec::new();
        let stale = self.shared.settle(batch, &mut delayed);
        for (token, after) in delayed {
            let (sleep, shared) = (self.env.sleep(after), Arc::downgrade(&self.shared));
            self.tasks.spawn(async move {
                sleep.await;
                if let Some(shared) = shared.upgrade() {
                    shared.wake(token);
                }
            });
        }
        if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async {
            // a connection that is lost at this moment gets it again when it is back
            acks::flush(&self.flush).await;
            Ok(())
        })
    }
}
