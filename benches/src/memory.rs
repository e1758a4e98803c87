//! The fastest honest loop without a broker: a bare bounded tokio channel, no envelope, no key, no settlement. What comes at
//! once is taken at once. Confirmed is what the channel has taken.

use anyhow::Result;
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::case::{Case, Direction};
use crate::job::{Job, found};
use crate::meter::Measured;
use crate::order::OrderPlaced;
use crate::pace::Pace;
use crate::tally::Tally;

/// What both subjects keep at most, where they publish and handle at the same time.
const BOUND: usize = 10_000;
/// How many bodies are taken at once.
const TAKEN: usize = 256;

/// Runs it.
pub(crate) async fn run(job: &Job) -> Result<Measured> {
    let (tally, backlog) = (job.tally(), job.case.direction() == Direction::Out);
    let (sender, receiver) = mpsc::channel(if backlog { job.messages as usize } else { BOUND });
    let (invoices, invoiced) = mpsc::channel(BOUND);
    // somebody takes the invoices, as the embedded broker lets go of what no group reads
    let archive = tokio::spawn(drain(invoiced));
    let consumer = consume(job.case, receiver, invoices, tally.clone());
    if backlog {
        publish(job, &sender, &tally).await?;
        drop(sender);
        tokio::spawn(consumer).await??;
    } else {
        let consumer = tokio::spawn(consumer);
        tally.begin();
        publish(job, &sender, &tally).await?;
        drop(sender);
        consumer.await??;
    }
    archive.await?;
    found(&tally)
}

async fn publish(job: &Job, sender: &mpsc::Sender<Bytes>, tally: &Tally) -> Result<()> {
    let mut order = job.order();
    let mut pace = Pace::new(job.rate);
    for number in 0..job.messages {
        if job.case == Case::Latency {
            tally.sent(number, pace.wait(number).await);
        }
        order.number(number);
        sender.send(serde_json::to_vec(&order)?.into()).await?;
    }
    Ok(())
}

async fn consume(
    case: Case,
    mut receiver: mpsc::Receiver<Bytes>,
    invoices: mpsc::Sender<Bytes>,
    tally: Tally,
) -> Result<()> {
    let mut bodies = Vec::with_capacity(TAKEN);
    while receiver.recv_many(&mut bodies, TAKEN).await > 0 {
        for body in bodies.drain(..) {
            let order: OrderPlaced = serde_json::from_slice(&body)?;
            tally.add(&order);
            if case == Case::Transform {
                invoices.send(serde_json::to_vec(&order.invoice())?.into()).await?;
            }
        }
    }
    Ok(())
}

async fn drain(mut invoices: mpsc::Receiver<Bytes>) {
    let mut taken = Vec::with_capacity(TAKEN);
    while invoices.recv_many(&mut taken, TAKEN).await > 0 {
        taken.clear();
    }
}
