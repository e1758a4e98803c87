//! The process that publishes: each customer's orders one after the other, many customers at once, each until it is confirmed.
//! Its standard input says how many messages it may have sent by now; when that ends, so does the process.

use std::io::{self, BufRead as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use postrider::{
    Broker, Envelope, MessageId, Outgoing, PublishError, PublishOptions, PublishOrder, Publisher as _,
};
use postrider::{EnvelopeContext, IntoEnvelope as _};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::order::OrderPlaced;
use super::{CHANNEL, KEYS};
use crate::history::{Id, Step, Writer};

/// Publishes `messages` orders, and returns when all are confirmed.
///
/// # Errors
/// If the broker can't be reached at the start, or the history can't be written.
pub async fn run(url: &str, folder: &Path, name: &str, messages: u32) -> Result<()> {
    let history = Arc::new(Writer::open(folder, name)?);
    let broker = postrider::connect(url).await?;
    let credit = Arc::new(Semaphore::new(0));
    follow_credit(Arc::clone(&credit));
    history.write(Step::Ready)?;
    let mut customers = JoinSet::new();
    for key in 0..KEYS {
        let numbers = (messages / KEYS) + u32::from(key < messages % KEYS);
        let (broker, history, credit) = (broker.clone(), Arc::clone(&history), Arc::clone(&credit));
        customers.spawn(async move {
            for number in 0..numbers {
                credit.acquire().await?.forget();
                publish(&broker, &history, Id { key, number }).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = customers.join_next().await {
        ended??;
    }
    broker.close(Instant::now() + Duration::from_secs(30)).await;
    Ok(())
}

/// Sends one order until it is confirmed: always under the same id, so that the broker drops what it has already.
async fn publish(broker: &Broker, history: &Writer, id: Id) -> Result<()> {
    let made = EnvelopeContext::first(broker.env(), broker.env().wall_ms());
    let order =
        Envelope::builder(OrderPlaced::new(id)).id(MessageId::parse(&format!("{}-{}", id.key, id.number)));
    let envelope = order.into_envelope(&made)?;
    loop {
        let mut options = PublishOptions::default();
        (options.order, options.deadline) = (PublishOrder::PerKey, Some(Duration::from_secs(20)));
        history.write(Step::Send { id })?;
        match broker.send(Outgoing::new(CHANNEL, envelope.clone()).with(options)).await.await {
            Ok(_) => return Ok(history.write(Step::Confirmed { id })?),
            Err(PublishError::Failed(error)) => {
                eprintln!("order {id:?}: {error}");
                history.write(Step::Failed { id })?;
            }
            Err(PublishError::Unknown(error)) => {
                eprintln!("order {id:?}: {error}");
                history.write(Step::Unknown { id })?;
            }
        }
    }
}

/// Lines with the number of messages that may have been sent by now.
fn follow_credit(credit: Arc<Semaphore>) {
    std::thread::spawn(move || {
        let mut given = 0;
        for line in io::stdin().lock().lines() {
            let Ok(Ok(granted)) = line.map(|line| line.trim().parse::<usize>()) else { break };
            credit.add_permits(granted.saturating_sub(given));
            given = given.max(granted);
        }
        // whoever drives the run is gone
        std::process::exit(3);
    });
}
