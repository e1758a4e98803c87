//! Who else is in the group: every member attends to the group's marker queue, where nothing ever comes, and counts who else does.
//! One that holds more than its share gives partitions away; the broker gives each to the member that has waited for it longest.
//! (A queue with a single active consumer counts only that one.)

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use postrider_core::Env;
use tokio_util::sync::CancellationToken;

use crate::connection::Link;
use crate::shared::Shared;

/// How often the members are counted.
const LOOK: Duration = Duration::from_secs(1);

/// How many of `partitions` a member holds at most. All shares together are never fewer than there are partitions.
fn share(partitions: usize, members: u32) -> usize {
    partitions.div_ceil(members.max(1) as usize)
}

/// Keeps the member's share right.
pub(crate) struct Members {
    pub(crate) link: Link,
    pub(crate) env: Env,
    pub(crate) shared: Arc<Shared>,
    pub(crate) marker: String,
    pub(crate) partitions: usize,
    pub(crate) stop: CancellationToken,
}

impl Members {
    /// Runs until the member leaves.
    pub(crate) async fn run(self) {
        let mut known = 1;
        let counting = async {
            loop {
                let (generation, connection) = self.link.up().await;
                // a connection that is lost, or a marker that is gone, is looked for again
                let counted = self.link.during(generation, self.count(&connection, &mut known)).await;
                if let Some(Err(error)) = counted {
                    tracing::debug!(target: "postrider::claim", %error, "the members can't be counted now");
                }
                self.env.sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = counting => {}
        }
    }

    async fn count(&self, connection: &lapin::Connection, known: &mut u32) -> lapin::Result<()> {
        let channel = connection.create_channel().await?;
        let marker = || self.marker.as_str().into();
        let options = BasicConsumeOptions::default();
        let mut attending =
            channel.basic_consume(marker(), "".into(), options, FieldTable::default()).await?;
        loop {
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::durable() };
            let found = channel.queue_declare(marker(), passive, FieldTable::default()).await?;
            let members = found.consumer_count();
            if members != *known && members > 0 {
                *known = members;
                let share = share(self.partitions, members);
                tracing::info!(target: "postrider::claim", marker = self.marker, members, share,
                    "the members of the group have changed; one without a partition stands by");
                self.shared.share(share, self.env.now());
            }
            self.shared.take_away(self.env.now());
            tokio::select! {
                // nothing comes but the end
                None | Some(Err(_)) = attending.next() => return Ok(()),
                () = self.env.sleep(LOOK) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_cover_all() {
        for partitions in [1, 2, 4, 8, 16, 32, 64] {
            for members in 0..70 {
                let share = share(partitions, members);
                assert!(share * members.max(1) as usize >= partitions, "{partitions} {members}");
                assert!((share - 1) * (members.max(1) as usize) < partitions, "{partitions} {members}");
            }
        }
    }
}
