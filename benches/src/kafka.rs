//! Apache Kafka by `rdkafka` itself: names, the ground under a run, and what both loops share.

pub(crate) mod best;
pub(crate) mod ground;
pub(crate) mod usual;

use anyhow::{Context as _, Result};
use postrider::kafka::Naming;
use rdkafka::ClientConfig;

use crate::job::{BILLING, INVOICES, Job, ORDERS};

/// How a subject's topics and group are called: as postrider calls them.
pub(crate) struct Names {
    pub(crate) orders: String,
    pub(crate) invoices: String,
    pub(crate) group: String,
}

impl Names {
    pub(crate) fn of(job: &Job) -> Result<Self> {
        let naming = Naming::new(Some(job.subject.name()))?;
        Ok(Self {
            orders: naming.topic(ORDERS)?,
            invoices: naming.topic(INVOICES)?,
            group: naming.group(ORDERS, BILLING)?,
        })
    }
}

/// A client of that broker and nothing else.
pub(crate) fn client(job: &Job) -> Result<ClientConfig> {
    let address = job.url.strip_prefix("kafka://").context("the URL doesn't begin with kafka://")?;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", address);
    Ok(client)
}
