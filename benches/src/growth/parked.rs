//! What the best loop pays as more handlers wait at once: bodies in a channel, decoded, each in a future that waits at the same gate, and
//! nothing else. What it grows by is the least that the machine adds: its futures are smaller than postrider's.

use anyhow::Result;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::task::unconstrained;

use super::load::{Load, Orders};
use super::point::Point;
use crate::job::found;
use crate::meter::Measured;
use crate::order::OrderPlaced;

/// Measures in this process.
pub(super) async fn run(point: &Point, load: &Load) -> Result<Measured> {
    let all = point.warm + point.messages;
    let (to, bodies) = mpsc::channel(all as usize);
    let mut orders = Orders::of(point);
    for number in 0..all {
        to.send(serde_json::to_vec(orders.number(number))?.into()).await?;
    }
    drop(to);
    // else whatever is woken when the task's budget is used up would be polled in vain, a hundred thousand times over
    unconstrained(read(bodies, point.at as usize, load)).await?;
    found(&load.tally)
}

async fn read(mut bodies: mpsc::Receiver<Bytes>, most: usize, load: &Load) -> Result<()> {
    let mut parked = FuturesUnordered::new();
    loop {
        while parked.len() < most
            && let Ok(body) = bodies.try_recv()
        {
            parked.push(handle(body, load));
        }
        let Some(handled) = parked.next().await else {
            return Ok(());
        };
        handled?;
    }
}

async fn handle(body: Bytes, load: &Load) -> Result<()> {
    let order: OrderPlaced = serde_json::from_slice(&body)?;
    load.wait(order).await;
    Ok(())
}
