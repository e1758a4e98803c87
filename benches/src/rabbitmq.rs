//! RabbitMQ by `lapin` itself: names, the ground under a run, and what both loops share.

pub(crate) mod best;
pub(crate) mod ground;
pub(crate) mod usual;

use std::time::Duration;

use anyhow::Result;
use lapin::types::ShortString;
use lapin::{Connection, ConnectionProperties};
use postrider::key_slot;
use postrider::rabbitmq::Naming;

use crate::job::{BILLING, INVOICES, Job, ORDERS};

/// How a subject's exchanges and queues are called: as postrider calls them.
pub(crate) struct Names {
    pub(crate) orders: ShortString,
    pub(crate) invoices: ShortString,
    pub(crate) queues: Vec<String>,
    pub(crate) archive: String,
    slots: Vec<ShortString>,
}

impl Names {
    pub(crate) fn of(job: &Job) -> Result<Self> {
        let naming = Naming::new(Some(job.subject.name()))?;
        let count = job.case.partitions();
        let queues = (0..count).map(|n| naming.queue(ORDERS, BILLING, n, count));
        Ok(Self {
            orders: naming.exchange(ORDERS)?.into(),
            invoices: naming.exchange(INVOICES)?.into(),
            queues: queues.collect::<postrider::Result<_>>()?,
            archive: naming.queue(INVOICES, "archive", 0, 1)?,
            slots: (0..64).map(|slot| Naming::slot(slot).into()).collect(),
        })
    }

    /// The routing key of what has that key.
    pub(crate) fn slot(&self, key: &str) -> ShortString {
        self.slots[key_slot(key.as_bytes()) as usize].clone()
    }
}

pub(crate) async fn connect(url: &str) -> Result<Connection> {
    Ok(Connection::connect(url, ConnectionProperties::default()).await?)
}

/// How long a loop that is through stays connected. Nothing confirms an acknowledgement, and under load the broker's channel passes
/// those for a quorum queue on in batches: a channel that closes drops the ones it still has, and their messages come again. That
/// breaks no promise, but would look like leftovers. It is no part of what is measured, and the check after the run shows whether
/// it was long enough.
const GRACE: Duration = Duration::from_secs(1);

/// Waits until the broker has taken in what was acknowledged.
pub(crate) async fn settle() {
    tokio::time::sleep(GRACE).await;
}
