//! The fastest honest loop on `lapin`: publishes polled once, so that their frames go out, and confirmed later; acknowledgements of
//! a hundred deliveries in one, not awaited; a prefetch of 1,000.

use std::collections::VecDeque;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use anyhow::{Context as _, Result, ensure};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Consumer};
use tokio::task::JoinSet;

use super::Names;
use crate::case::Case;
use crate::job::{BATCH, Job, found};
use crate::meter::Measured;
use crate::order::OrderPlaced;
use crate::pace::Pace;
use crate::stamp::{self, Claimed, Said, Stamp};
use crate::tally::Tally;

/// Messages in flight.
const WINDOW: u64 = 1_024;
const PREFETCH: u16 = 1_000;
/// Deliveries in one acknowledgement.
const TOGETHER: u64 = 100;

/// Runs it.
pub(crate) async fn run(job: &Job) -> Result<Measured> {
    let (connection, names) = (super::connect(&job.url).await?, Arc::new(Names::of(job)?));
    if let Case::PublishOne | Case::Publish | Case::PublishAll = job.case {
        publish(&job.first(), Output::open(&connection, job).await?, &names, None).await?;
        let output = Output::open(&connection, job).await?;
        let measured = job.publishing(publish(job, output, &names, None)).await?;
        connection.close(200, "done".into()).await?;
        return Ok(measured);
    }
    let (tally, mut tasks) = (job.tally(), JoinSet::new());
    // one connection for reading and another for writing, as a broker that is short of memory stops writers
    let writing = super::connect(&job.url).await?;
    for queue in &names.queues {
        let channel = connection.create_channel().await?;
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
        let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
        let consumer =
            channel.basic_consume(queue.as_str().into(), "best".into(), options, arguments).await?;
        let acks = Acks { channel, last: 0, told: 0 };
        if job.case == Case::Transform {
            let output = Output::open(&writing, job).await?;
            tasks.spawn(transform(consumer, acks, output, Arc::clone(&names), tally.clone()));
        } else {
            tasks.spawn(handle(consumer, acks, tally.clone()));
        }
    }
    if job.case == Case::Latency {
        publish(job, Output::open(&writing, job).await?, &names, Some(&tally)).await?;
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    for connection in [connection, writing] {
        connection.close(200, "done".into()).await?;
    }
    found(&tally)
}

type Confirming = Pin<Box<dyn Future<Output = (u64, lapin::Result<Confirmation>)> + Send>>;

/// Publishes whose confirms are awaited later, each with a number of the caller's.
struct Output {
    channel: Channel,
    stamp: Option<Stamp>,
    out: FuturesUnordered<Confirming>,
}

impl Output {
    async fn open(connection: &Connection, job: &Job) -> Result<Self> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Self { channel, stamp: Stamp::of(job), out: FuturesUnordered::new() })
    }

    fn len(&self) -> u64 {
        self.out.len() as u64
    }

    async fn send(
        &mut self,
        number: u64,
        of: &str,
        key: &str,
        exchange: &ShortString,
        slot: ShortString,
        body: Vec<u8>,
    ) -> Result<()> {
        let (channel, exchange) = (self.channel.clone(), exchange.clone());
        let properties = match &mut self.stamp {
            Some(stamp) => properties(of, key, stamp.next()?),
            None => BasicProperties::default().with_delivery_mode(2),
        };
        let mut publishing: Confirming = Box::pin(async move {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let confirmed = match channel.basic_publish(exchange, slot, options, &body, properties).await {
                Ok(confirm) => confirm.await,
                Err(error) => Err(error),
            };
            (number, confirmed)
        });
        // its frames go out now
        match futures_util::poll!(publishing.as_mut()) {
            Poll::Ready(done) => self.out.push(Box::pin(std::future::ready(done))),
            Poll::Pending => self.out.push(publishing),
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        Ok(self.channel.close(200, "done".into()).await?)
    }

    /// The number of the next that is confirmed.
    async fn confirmed(&mut self) -> Result<u64> {
        let (number, confirmation) = self.out.next().await.context("nothing is out")?;
        let confirmation = confirmation?;
        ensure!(matches!(confirmation, Confirmation::Ack(None)), "the broker says {confirmation:?}");
        Ok(number)
    }
}

fn properties(of: &str, key: &str, said: Said<'_>) -> BasicProperties {
    let headers = [
        ("cloudEvents:specversion", stamp::SPECVERSION),
        ("cloudEvents:id", said.id),
        ("cloudEvents:time", said.time),
        ("cloudEvents:schemaversion", stamp::SCHEMA_VERSION),
        ("cloudEvents:type", of),
        ("cloudEvents:partitionkey", key),
        ("cloudEvents:source", stamp::SOURCE),
    ];
    let mut table = FieldTable::default();
    for (name, value) in headers {
        table.insert(name.into(), AMQPValue::LongString(value.into()));
    }
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type(stamp::CONTENT_TYPE.into())
        .with_message_id(said.id.into())
        .with_timestamp(said.ms / 1000)
        .with_headers(table)
}

async fn publish(job: &Job, mut output: Output, names: &Names, tally: Option<&Tally>) -> Result<()> {
    let mut order = job.order();
    let mut pace = Pace::new(job.rate);
    let (window, rest) = match job.case {
        Case::PublishOne => (1, 0),
        Case::PublishAll => (BATCH, 0),
        _ => (WINDOW, WINDOW - 1),
    };
    for number in 0..job.messages {
        if let Some(tally) = tally {
            tally.sent(number, pace.wait(number).await);
        }
        if output.len() >= window {
            while output.len() > rest {
                output.confirmed().await?;
            }
        }
        order.number(number);
        let (key, body) = (order.key(), serde_json::to_vec(&order)?);
        output.send(number, stamp::ORDER, &key, &names.orders, names.slot(&key), body).await?;
    }
    while output.len() > 0 {
        output.confirmed().await?;
    }
    output.close().await
}

/// What is to be acknowledged on a channel: everything up to the last.
struct Acks {
    channel: Channel,
    last: u64,
    told: u64,
}

impl Acks {
    fn tell(&mut self, at_least: u64) -> Result<()> {
        if self.last - self.told < at_least {
            return Ok(());
        }
        self.told = self.last;
        let multiple = BasicAckOptions { multiple: true };
        // its frame goes out at the first poll
        self.channel.basic_ack(self.last, multiple).now_or_never().transpose()?;
        Ok(())
    }

    /// The broker has all of them.
    async fn finish(&mut self) -> Result<()> {
        self.tell(1)?;
        super::settle().await;
        // the answer comes after all that was sent before
        Ok(self.channel.close(200, "done".into()).await?)
    }
}

fn claimed(delivery: &Delivery) -> Claimed<'_> {
    let said = |name: &str| match delivery.properties.headers().as_ref()?.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        _ => None,
    };
    Claimed {
        id: said("cloudEvents:id"),
        of: said("cloudEvents:type"),
        version: said("cloudEvents:schemaversion"),
        content_type: delivery.properties.content_type().as_ref().map(ShortString::as_str),
    }
}

async fn handle(mut consumer: Consumer, mut acks: Acks, tally: Tally) -> Result<()> {
    let watching = tally.clone();
    let mut full = pin!(watching.full());
    loop {
        let mut next = tokio::select! {
            biased;
            delivery = consumer.next() => delivery,
            () = &mut full => return acks.finish().await,
        };
        while let Some(delivery) = next {
            let delivery = delivery?;
            black_box(claimed(&delivery).check()?);
            let order: OrderPlaced = serde_json::from_slice(&delivery.data)?;
            tally.add(&order);
            acks.last = delivery.delivery_tag;
            acks.tell(TOGETHER)?;
            next = consumer.next().now_or_never().flatten();
        }
        // a wake-up for each delivery costs more than all else: let several come
        tokio::task::yield_now().await;
    }
}

/// Acknowledges orders up to the first whose invoice isn't confirmed.
async fn transform(
    mut consumer: Consumer,
    mut acks: Acks,
    mut output: Output,
    names: Arc<Names>,
    tally: Tally,
) -> Result<()> {
    // whether the invoices of the orders after the last that was acknowledged are confirmed
    let mut out: VecDeque<bool> = VecDeque::new();
    let watching = tally.clone();
    let mut full = pin!(watching.full());
    loop {
        let delivery: Delivery = tokio::select! {
            biased;
            number = output.confirmed(), if output.len() > 0 => {
                *out.get_mut((number? - acks.last - 1) as usize).context("a confirm of nothing")? = true;
                while let Some(true) = out.front() {
                    out.pop_front();
                    acks.last += 1;
                }
                acks.tell(TOGETHER)?;
                continue;
            }
            Some(delivery) = consumer.next(), if output.len() < WINDOW => delivery?,
            () = &mut full, if out.is_empty() => break,
        };
        black_box(claimed(&delivery).check()?);
        let order: OrderPlaced = serde_json::from_slice(&delivery.data)?;
        tally.add(&order);
        let invoice = order.invoice();
        let (key, body) = (invoice.key(), serde_json::to_vec(&invoice)?);
        let slot = names.slot(&key);
        output.send(delivery.delivery_tag, stamp::INVOICE, &key, &names.invoices, slot, body).await?;
        out.push_back(false);
    }
    output.close().await?;
    acks.finish().await
}
