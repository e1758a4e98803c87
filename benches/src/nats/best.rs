//! The fastest honest loop on `async-nats`: an inbox that counts the server's answers, pull requests renewed ahead, and
//! acknowledgements that aren't awaited.

use std::collections::VecDeque;
use std::hint::black_box;
use std::pin::pin;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::header::{HeaderName, HeaderValue};
use async_nats::{Client, ConnectOptions, HeaderMap, Message, Subject, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::task::JoinSet;

use super::Names;
use super::pull::Pull;
use crate::case::Case;
use crate::job::{BATCH, Job, found};
use crate::meter::Measured;
use crate::order::OrderPlaced;
use crate::pace::Pace;
use crate::stamp::{self, Claimed, Said, Stamp};
use crate::tally::Tally;

/// Messages in flight.
const WINDOW: u64 = 1_024;

/// The server's answer to a publish.
#[derive(Deserialize)]
struct Answer {
    error: Option<IgnoredAny>,
}

/// Runs it.
pub(crate) async fn run(job: &Job) -> Result<Measured> {
    let options = ConnectOptions::new().subscription_capacity(256 * 1024);
    let client = options.connect(&job.url).await?;
    let names = Arc::new(Names::of(job)?);
    match job.case {
        Case::PublishOne | Case::Publish | Case::PublishAll => {
            publish(&job.first(), &client, &names, None).await?;
            job.publishing(publish(job, &client, &names, None)).await
        }
        Case::Latency => {
            let tally = job.tally();
            let consumers = consume(job, &client, &names, &tally).await?;
            publish(job, &client, &names, Some(&tally)).await?;
            end(consumers, &client, &tally).await
        }
        _ => {
            let tally = job.tally();
            let consumers = consume(job, &client, &names, &tally).await?;
            end(consumers, &client, &tally).await
        }
    }
}

async fn end(mut consumers: JoinSet<Result<()>>, client: &Client, tally: &Tally) -> Result<Measured> {
    while let Some(consumer) = consumers.join_next().await {
        consumer??;
    }
    // the server has seen every acknowledgement
    client.flush().await?;
    found(tally)
}

fn check(answer: Option<Message>) -> Result<()> {
    let answer = answer.context("the connection is closed")?;
    ensure!(answer.status.is_none(), "nobody takes the message");
    let read: Answer = serde_json::from_slice(&answer.payload)?;
    ensure!(read.error.is_none(), "the server refuses: {}", String::from_utf8_lossy(&answer.payload));
    Ok(())
}

async fn publish(job: &Job, client: &Client, names: &Names, tally: Option<&Tally>) -> Result<()> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    let inbox = Subject::from(inbox);
    let mut stamp = Stamp::of(job);
    let mut order = job.order();
    let mut pace = Pace::new(job.rate);
    let (window, all_at_once) = match job.case {
        Case::PublishOne => (1, false),
        Case::PublishAll => (BATCH, true),
        _ => (WINDOW, false),
    };
    let mut out = 0;
    for number in 0..job.messages {
        if let Some(tally) = tally {
            tally.sent(number, pace.wait(number).await);
        }
        if out == window {
            check(answers.next().await)?;
            out -= 1;
            while out > 0 && all_at_once {
                check(answers.next().await)?;
                out -= 1;
            }
            out -= ready(&mut answers, out)?;
        }
        order.number(number);
        let body = serde_json::to_vec(&order)?;
        let key = order.key();
        send(client, &mut stamp, stamp::ORDER, &key, names.order(&key), inbox.clone(), body).await?;
        out += 1;
    }
    for _ in 0..out {
        check(answers.next().await)?;
    }
    Ok(())
}

async fn send(
    client: &Client,
    stamp: &mut Option<Stamp>,
    of: &str,
    key: &str,
    to: Subject,
    reply: Subject,
    body: Vec<u8>,
) -> Result<()> {
    if let Some(stamp) = stamp {
        let headers = headers(of, key, stamp.next()?);
        client.publish_with_reply_and_headers(to, reply, headers, body.into()).await?;
    } else {
        client.publish_with_reply(to, reply, body.into()).await?;
    }
    Ok(())
}

fn headers(of: &str, key: &str, said: Said<'_>) -> HeaderMap {
    let headers = [
        (HeaderName::from_static("ce-specversion"), stamp::SPECVERSION),
        (HeaderName::from_static("ce-id"), said.id),
        (HeaderName::from_static("ce-time"), said.time),
        (HeaderName::from_static("ce-schemaversion"), stamp::SCHEMA_VERSION),
        (HeaderName::from_static("ce-type"), of),
        (HeaderName::from_static("ce-partitionkey"), key),
        (HeaderName::from_static("ce-source"), stamp::SOURCE),
        (HeaderName::from_static("content-type"), stamp::CONTENT_TYPE),
        (HeaderName::from_static("Nats-Msg-Id"), said.id),
    ];
    headers.into_iter().map(|(name, value)| (name, HeaderValue::from(value))).collect()
}

/// Takes the answers that are there.
fn ready(answers: &mut Subscriber, out: u64) -> Result<u64> {
    let mut taken = 0;
    while taken < out
        && let Some(answer) = answers.next().now_or_never()
    {
        check(answer)?;
        taken += 1;
    }
    Ok(taken)
}

async fn consume(
    job: &Job,
    client: &Client,
    names: &Arc<Names>,
    tally: &Tally,
) -> Result<JoinSet<Result<()>>> {
    let mut tasks = JoinSet::new();
    for consumer in &names.consumers {
        let pull = Pull::open(client, &names.stream, consumer, job.case == Case::ConsumeKeyed).await?;
        let (client, tally) = (client.clone(), tally.clone());
        if job.case == Case::Transform {
            tasks.spawn(transform(pull, client, Arc::clone(names), tally, Stamp::of(job)));
        } else {
            tasks.spawn(handle(pull, client, tally));
        }
    }
    Ok(tasks)
}

async fn handle(mut pull: Pull, client: Client, tally: Tally) -> Result<()> {
    let watching = tally.clone();
    let mut full = pin!(watching.full());
    loop {
        let message = tokio::select! {
            biased;
            message = pull.next() => message?,
            () = &mut full => return Ok(()),
        };
        black_box(claimed(&message).check()?);
        let order: OrderPlaced = serde_json::from_slice(&message.payload)?;
        tally.add(&order);
        acknowledge(&client, message).await?;
    }
}

fn claimed(message: &Message) -> Claimed<'_> {
    static ID: HeaderName = HeaderName::from_static("ce-id");
    static OF: HeaderName = HeaderName::from_static("ce-type");
    static VERSION: HeaderName = HeaderName::from_static("ce-schemaversion");
    static CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
    let said = |name: &HeaderName| Some(message.headers.as_ref()?.get(name.clone())?.as_str());
    Claimed { id: said(&ID), of: said(&OF), version: said(&VERSION), content_type: said(&CONTENT_TYPE) }
}

async fn acknowledge(client: &Client, message: Message) -> Result<()> {
    let Some(reply) = message.reply else { bail!("a message can't be acknowledged") };
    Ok(client.publish(reply, Bytes::from_static(b"+ACK")).await?)
}

/// Acknowledges an order when its invoice is confirmed.
async fn transform(
    mut pull: Pull,
    client: Client,
    names: Arc<Names>,
    tally: Tally,
    mut stamp: Option<Stamp>,
) -> Result<()> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(format!("{inbox}.*")).await?;
    // the orders whose invoices are out, from the one of number `first` on
    let (mut out, mut first): (VecDeque<Option<Message>>, u64) = (VecDeque::new(), 0);
    let watching = tally.clone();
    let mut full = pin!(watching.full());
    loop {
        let message = tokio::select! {
            biased;
            answer = answers.next(), if !out.is_empty() => {
                let number = answer.as_ref().and_then(|a| a.subject.rsplit('.').next()?.parse::<u64>().ok());
                check(answer)?;
                let index = number.context("an answer to nothing")? - first;
                let slot = out.get_mut(index as usize).context("an answer to nothing")?;
                if let Some(order) = slot.take() {
                    acknowledge(&client, order).await?;
                }
                while let Some(None) = out.front() {
                    out.pop_front();
                    first += 1;
                }
                continue;
            }
            message = pull.next(), if (out.len() as u64) < WINDOW => message?,
            () = &mut full, if out.is_empty() => return Ok(()),
        };
        black_box(claimed(&message).check()?);
        let order: OrderPlaced = serde_json::from_slice(&message.payload)?;
        tally.add(&order);
        let invoice = order.invoice();
        let (key, body) = (invoice.key(), serde_json::to_vec(&invoice)?);
        let reply = format!("{inbox}.{}", first + out.len() as u64).into();
        send(&client, &mut stamp, stamp::INVOICE, &key, names.invoice(&key), reply, body).await?;
        out.push_back(Some(message));
    }
}
