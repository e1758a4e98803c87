//! The tracker of one subscription: what it handed out is settled here.

use std::sync::Arc;

use postrider_core::{BoxFuture, Env, Settle, SettleError, Settlement, Token};
use tokio_util::task::TaskTracker;

use crate::channel::{Channel, MemberId};

#[derive(Debug)]
pub(crate) struct Tracker {
    pub(crate) channel: Arc<Channel>,
    pub(crate) member: MemberId,
    pub(crate) env: Env,
    /// Those who wait for a delayed message's time; they end with the broker.
    pub(crate) timers: Timers,
}

/// The broker's timers: tasks that its end ends.
#[derive(Clone, Debug)]
pub(crate) struct Timers {
    tasks: TaskTracker,
    ended: tokio_util::sync::CancellationToken,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self { tasks: TaskTracker::new(), ended: tokio_util::sync::CancellationToken::new() }
    }

    pub(crate) fn end(&self) {
        self.ended.cancel();
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let ended = self.ended.clone();
        self.tasks.spawn(async move { ended.run_until_cancelled(task).await });
    }
}

impl Settle for Tracker {
    fn settle(&self, batch: &[(Token, Settlement)]) -> Result<(), SettleError> {
        let mut delayed = Vec::new();
        let stale = self.channel.settle(&self.member, batch, &mut delayed);
        for (position, after) in delayed {
            let (channel, group, sleep) =
                (Arc::clone(&self.channel), self.member.group.clone(), self.env.sleep(after));
            self.timers.spawn(async move {
                sleep.await;
                channel.wake(&group, position);
            });
        }
        if stale.is_empty() { Ok(()) } else { Err(SettleError { stale }) }
    }

    /// What is recorded is the broker's at once.
    fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async { Ok(()) })
    }
}
