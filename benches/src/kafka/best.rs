//! The fastest honest loop on `rdkafka`'s safe interface: threads of our own around a producer whose deliveries are counted and a
//! `BaseConsumer`, no lingering and a wide window, a short back-off of full fetch queues, offsets stored here and committed by the
//! client without waiting. (`BaseProducer::poll` returns at its deadline only, also when something came, so the producer is one
//! with a thread that polls.)

use std::collections::VecDeque;
use std::hint::black_box;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{
    BorrowedHeaders, BorrowedMessage, DeliveryResult, Header, Headers as _, OwnedHeaders,
};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message as _};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use super::Names;
use crate::case::{Case, Subject};
use crate::job::{BATCH, Job, found};
use crate::meter::Measured;
use crate::order::OrderPlaced;
use crate::pace::Pace;
use crate::stamp::{self, Claimed, Said, Stamp};
use crate::tally::Tally;

/// Messages in flight. (With 10,000 it is slower: what the client holds of them doesn't stay in the processor's caches.)
const WINDOW: u64 = 4_096;
/// The window that the other is held against.
const NARROW: u64 = 256;
const TICK: Duration = Duration::from_millis(100);

/// Counts deliveries; those of a transforming loop it also tells by number.
#[derive(Debug, Default)]
struct Deliveries {
    count: AtomicU64,
    /// Who waits is woken when so many are delivered.
    awaited: AtomicU64,
    waiting: Mutex<Option<Thread>>,
    failed: AtomicBool,
    /// Which were delivered since somebody looked; kept only if `tell` is set.
    numbers: Mutex<Vec<usize>>,
    tell: bool,
}

#[derive(Clone, Debug, Default)]
struct Context(Arc<Deliveries>);

impl ClientContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        if result.is_err() {
            self.0.failed.store(true, Relaxed);
        }
        if self.0.tell {
            self.0.numbers.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        }
        let count = self.0.count.fetch_add(1, SeqCst) + 1;
        if count >= self.0.awaited.load(SeqCst)
            && let Some(thread) = &*self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
        {
            thread.unpark();
        }
    }
}

/// A producer that counts what is out.
struct Sender {
    producer: ThreadedProducer<Context>,
    stamp: Option<Stamp>,
    deliveries: Arc<Deliveries>,
    sent: u64,
}

impl Sender {
    fn new(job: &Job, tell: bool) -> Result<Self> {
        let deliveries =
            Arc::new(Deliveries { tell, awaited: AtomicU64::new(u64::MAX), ..Deliveries::default() });
        let producer = super::client(job)?
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            // or a small request waits for the answer to the one before it
            .set("socket.nagle.disable", "true")
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", "30000")
            .create_with_context(Context(Arc::clone(&deliveries)))?;
        Ok(Self { producer, stamp: Stamp::of(job), deliveries, sent: 0 })
    }

    fn out(&self) -> u64 {
        self.sent - self.deliveries.count.load(SeqCst)
    }

    fn send(&mut self, topic: &str, of: &str, key: &str, body: &[u8]) -> Result<()> {
        let mut record = BaseRecord::with_opaque_to(topic, self.sent as usize).key(key).payload(body);
        if let Some(stamp) = &mut self.stamp {
            let said = stamp.next()?;
            record = record.timestamp(said.ms as i64).headers(headers(of, key, said));
        }
        while let Err((error, back)) = self.producer.send(record) {
            if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            self.settle(self.out() / 2)?;
            record = back;
        }
        self.sent += 1;
        Ok(())
    }

    /// Returns when at most so many are out.
    fn settle(&self, most: u64) -> Result<()> {
        if self.out() > most {
            let waiting = || self.deliveries.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            *waiting() = Some(std::thread::current());
            self.deliveries.awaited.store(self.sent - most, SeqCst);
            while self.out() > most {
                // woken; the time-out is for one that was woken by an earlier wish
                std::thread::park_timeout(TICK);
            }
            self.deliveries.awaited.store(u64::MAX, SeqCst);
            *waiting() = None;
        }
        ensure!(!self.deliveries.failed.load(Relaxed), "a delivery has failed");
        Ok(())
    }
}

fn headers(of: &str, key: &str, said: Said<'_>) -> OwnedHeaders {
    let headers = [
        ("ce_specversion", stamp::SPECVERSION),
        ("ce_id", said.id),
        ("ce_time", said.time),
        ("ce_schemaversion", stamp::SCHEMA_VERSION),
        ("ce_type", of),
        ("ce_partitionkey", key),
        ("ce_source", stamp::SOURCE),
        ("content-type", stamp::CONTENT_TYPE),
    ];
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers.into_iter().fold(empty, |all, (key, value)| all.insert(Header { key, value: Some(value) }))
}

/// Runs it.
pub(crate) async fn run(job: &Job) -> Result<Measured> {
    let names = Arc::new(Names::of(job)?);
    let mut sender = Sender::new(job, false)?;
    if let Case::PublishOne | Case::Publish | Case::PublishAll = job.case {
        let (first, work) = (job.first(), job.clone());
        let sending = spawn_blocking(move || {
            publish(&first, &mut sender, &names, None)?;
            anyhow::Ok((sender, names))
        });
        let (mut sender, names) = sending.await??;
        let sending = async { spawn_blocking(move || publish(&work, &mut sender, &names, None)).await? };
        return job.publishing(sending).await;
    }
    let tally = job.tally();
    let consuming = spawn_blocking({
        let (job, names, tally) = (job.clone(), Arc::clone(&names), tally.clone());
        let output = if job.case == Case::Transform { Some(Sender::new(&job, true)?) } else { None };
        move || consume(&job, &names, &tally, output)
    });
    if job.case == Case::Latency {
        let (job, tally) = (job.clone(), tally.clone());
        spawn_blocking(move || publish(&job, &mut sender, &names, Some(&tally))).await??;
    }
    consuming.await??;
    found(&tally)
}

fn publish(job: &Job, sender: &mut Sender, names: &Names, tally: Option<&Tally>) -> Result<()> {
    let runtime = Handle::current();
    let mut order = job.order();
    let mut pace = Pace::new(job.rate);
    let (window, rest) = match (job.case, job.subject) {
        (Case::PublishOne, _) => (1, 0),
        (Case::PublishAll, _) => (BATCH, 0),
        (_, Subject::Narrow) => (NARROW, NARROW / 2),
        _ => (WINDOW, WINDOW / 2),
    };
    for number in 0..job.messages {
        if let Some(tally) = tally {
            tally.sent(number, runtime.block_on(pace.wait(number)));
        }
        if sender.out() >= window {
            sender.settle(rest)?;
        }
        order.number(number);
        sender.send(&names.orders, stamp::ORDER, &order.key(), &serde_json::to_vec(&order)?)?;
    }
    sender.settle(0)
}

fn consume(job: &Job, names: &Names, tally: &Tally, mut output: Option<Sender>) -> Result<()> {
    let consumer: BaseConsumer = super::client(job)?
        .set("group.id", &names.group)
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "100")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("fetch.queue.backoff.ms", "10")
        // a record that was damaged is noticed, as by postrider
        .set("check.crcs", "true")
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", "4096")
        .set("socket.nagle.disable", "true")
        .create()?;
    consumer.subscribe(&[&names.orders])?;
    let reads = Claimed::is_read_by(job);
    let mut pending = Pending::default();
    let wait = if output.is_some() { Duration::from_millis(1) } else { TICK };
    while !tally.is_full() || !pending.out.is_empty() {
        if let Some(output) = &mut output {
            pending.store(&consumer, &names.orders, output)?;
            if tally.is_full() {
                output.settle(0)?;
                continue;
            }
            if output.out() >= WINDOW {
                output.settle(WINDOW / 2)?;
            }
        }
        // several at once, so that deliveries are looked at once for all of them
        for turn in 0..256 {
            let Some(message) = consumer.poll(if turn == 0 { wait } else { Duration::ZERO }) else { break };
            let message = message?;
            if reads {
                black_box(claimed(&message).check()?);
            }
            let order: OrderPlaced = serde_json::from_slice(message.payload().context("no body")?)?;
            tally.add(&order);
            if let Some(output) = &mut output {
                let invoice = order.invoice();
                let body = serde_json::to_vec(&invoice)?;
                output.send(&names.invoices, stamp::INVOICE, &invoice.key(), &body)?;
                pending.out.push_back((message.partition(), message.offset(), false));
            } else {
                consumer.store_offset(&names.orders, message.partition(), message.offset())?;
            }
            if tally.is_full() {
                break;
            }
        }
    }
    match consumer.commit_consumer_state(CommitMode::Sync) {
        // the client had written down everything already
        Ok(()) | Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => Ok(()),
        Err(error) => bail!("the place can't be written down: {error}"),
    }
}

fn claimed<'a>(message: &'a BorrowedMessage<'_>) -> Claimed<'a> {
    let mut claimed = Claimed::default();
    for header in message.headers().into_iter().flat_map(BorrowedHeaders::iter) {
        let value = header.value.and_then(|value| std::str::from_utf8(value).ok());
        match header.key {
            "ce_id" => claimed.id = value,
            "ce_type" => claimed.of = value,
            "ce_schemaversion" => claimed.version = value,
            "content-type" => claimed.content_type = value,
            _ => {}
        }
    }
    claimed
}

/// The orders whose invoices are out, from that of number `first` on.
#[derive(Default)]
struct Pending {
    out: VecDeque<(i32, i64, bool)>,
    first: usize,
}

impl Pending {
    /// Stores the places of the orders whose invoices are delivered, up to the first that isn't.
    fn store(&mut self, consumer: &BaseConsumer, topic: &str, output: &Sender) -> Result<()> {
        output.settle(u64::MAX)?;
        let numbers =
            std::mem::take(&mut *output.deliveries.numbers.lock().unwrap_or_else(PoisonError::into_inner));
        for number in numbers {
            self.out.get_mut(number - self.first).context("a delivery of nothing")?.2 = true;
        }
        while let Some(&(partition, offset, true)) = self.out.front() {
            consumer.store_offset(topic, partition, offset)?;
            self.out.pop_front();
            self.first += 1;
        }
        Ok(())
    }
}
