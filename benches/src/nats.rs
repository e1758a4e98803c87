//! NATS JetStream by `async-nats` itself: names, the ground under a run, and what both loops share.

pub(crate) mod best;
pub(crate) mod ground;
pub(crate) mod pull;
pub(crate) mod usual;

use anyhow::Result;
use async_nats::Subject;
use postrider::key_slot;
use postrider::nats::Naming;

use crate::job::{BILLING, INVOICES, Job, ORDERS};

/// How a subject's streams, subjects and consumers are called: as postrider calls them.
pub(crate) struct Names {
    pub(crate) stream: String,
    pub(crate) invoices: String,
    pub(crate) consumers: Vec<String>,
    orders_slots: Vec<Subject>,
    invoices_slots: Vec<Subject>,
}

impl Names {
    pub(crate) fn of(job: &Job) -> Result<Self> {
        let naming = Naming::new(Some(job.subject.name()))?;
        let count = job.case.partitions();
        let consumers = (0..count).map(|n| naming.consumer(ORDERS, BILLING, n, count));
        let slots = |channel| (0..64).map(|slot| naming.slot(channel, slot).into()).collect();
        Ok(Self {
            stream: naming.stream(ORDERS)?,
            invoices: naming.stream(INVOICES)?,
            consumers: consumers.collect::<postrider::Result<_>>()?,
            orders_slots: slots(ORDERS),
            invoices_slots: slots(INVOICES),
        })
    }

    /// Where an order of that key goes.
    pub(crate) fn order(&self, key: &str) -> Subject {
        self.orders_slots[key_slot(key.as_bytes()) as usize].clone()
    }

    /// Where an invoice of that key goes.
    pub(crate) fn invoice(&self, key: &str) -> Subject {
        self.invoices_slots[key_slot(key.as_bytes()) as usize].clone()
    }
}
