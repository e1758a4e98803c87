//! The tracker of one subscription: what it handed out is settled here, and told to the broker by its tasks.

use std::sync::Arc;

use futures_util::future::join_all;
use postrider_core::{BoxFuture, Env, Settle, SettleError, Settlement, Token};
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::partition::Request;
use crate::shared::Shared;

#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) shared: Arc<Shared>,
    /// One a partition.
    pub(crate) requests: Vec<mpsc::Sender<Request>>,
    pub(crate) env: Env,
    /// The broker's: timers of delayed messages end with it.
    pub(crate) tasks: TaskTracker,
}

impl Tracker {
    /// Asks every partition's task, and answers what those said that could be asked.
    pub(crate) async fn ask<T>(&self, request: impl Fn(oneshot::Sender<T>) -> Request) -> Vec<Option<T>> {
        join_all(self.requests.iter().map(|requests| {
            let (answer, answered) = oneshot::channel();
            let request = request(answer);
            async move {
                requests.send(request).await.ok()?;
                answered.await.ok()
            }
        }))
        .await
    }
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
                    shared.awake(token);
                }
            });
        }
        if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async {
            // what a lost channel took with it comes again, under a new claim: its tokens are stale by then
            self.ask(Request::Flush).await;
            Ok(())
        })
    }
}
