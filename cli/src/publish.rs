//! `postrider publish`: one message, or one for each line. Publishing declares nothing.

mod bulk;

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{ArgGroup, Args};
use postrider::{
    Attribute, Channel, Env, Envelope, EnvelopeBuilder, Error, MessageId, Outgoing, PublishError,
    PublishOptions, Publisher, Result,
};
use serde::Serialize;

use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::output;

/// The body comes from the argument, a file, or standard input.
#[derive(Args)]
#[command(group = ArgGroup::new("from").args(["body", "file", "null"]), after_help = "\
Examples:
  postrider publish orders '{\"order_id\":\"o-1\"}' --key o-1 --type order.placed --version 1
  postrider publish orders --file order.json --header tenant=acme
  postrider publish orders --ndjson --file orders.ndjson --key-from order_id --type order.placed --version 1

A publish is confirmed (the broker has it), failed (certainly not stored), or unknown (it may be stored). Nothing is
declared: a channel that isn't there is an error.")]
pub(crate) struct Options {
    /// The channel to publish to
    channel: String,
    /// The body; standard input where neither it nor `--file` is given
    body: Option<String>,
    /// Read the body, or with `--ndjson` the lines, from this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// No body: a tombstone, which says that its key is gone
    #[arg(long)]
    null: bool,
    /// Each line is a JSON body, published as one message
    #[arg(long, conflicts_with_all = ["body", "null", "id", "idempotency_key"])]
    ndjson: bool,
    /// The key: the unit of order
    #[arg(long)]
    key: Option<String>,
    /// With `--ndjson`: the field of each line that is its key
    #[arg(long, value_name = "FIELD", requires = "ndjson", conflicts_with = "key")]
    key_from: Option<String>,
    /// A header; may be given again
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The message's type
    #[arg(long = "type", value_name = "NAME")]
    type_name: Option<String>,
    /// The version of the message's type
    #[arg(long, value_name = "N", requires = "type_name")]
    version: Option<u32>,
    /// The message's id; a new one if not given
    #[arg(long)]
    id: Option<String>,
    /// Your own identity of what the message says, for consumers that handle each once
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// The media type of the body; `application/json` where the body is JSON, if not given
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// How long to wait for a confirm
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = postrider::duration::parse)]
    deadline: Duration,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

fn header(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write `NAME=VALUE`")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What became of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Confirmed,
    Failed,
    Unknown,
}

#[derive(Serialize)]
struct Answer<'a> {
    outcome: Outcome,
    channel: &'a str,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    partition: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl Options {
    /// An envelope around a body, by what was asked for.
    fn envelope(&self, body: Option<Bytes>, key: Option<&[u8]>, env: &Env) -> Result<Envelope> {
        let is_json = || {
            body.as_ref().is_some_and(|body| serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok())
        };
        let content_type = match &self.content_type {
            Some(given) => Some(given.as_str()),
            None if self.ndjson || is_json() => Some("application/json"),
            None => None,
        };
        let mut builder = match body {
            Some(body) => Envelope::builder(body),
            None => EnvelopeBuilder::null(),
        };
        if let Some(content_type) = content_type {
            builder = builder.attribute(Attribute::ContentType, content_type);
        }
        if let Some(name) = &self.type_name {
            builder = builder.type_name(name).version(self.version.unwrap_or(1));
        }
        if let Some(key) = key.or(self.key.as_deref().map(str::as_bytes)) {
            builder = builder.key(key);
        }
        if let Some(id) = &self.id {
            builder = builder.id(MessageId::parse(id));
        }
        if let Some(key) = &self.idempotency_key {
            builder = builder.idempotency_key(key);
        }
        for (name, value) in &self.headers {
            builder = builder.header(name, value);
        }
        builder.build(env)
    }

    fn outgoing(&self, envelope: Envelope) -> Outgoing<'_> {
        let mut options = PublishOptions::default();
        options.deadline = Some(self.deadline);
        Outgoing::new(&*self.channel, envelope).with(options)
    }

    /// The body of a single message.
    fn body(&self) -> std::result::Result<Option<Bytes>, Failure> {
        if self.null {
            return Ok(None);
        }
        if let Some(body) = &self.body {
            return Ok(Some(body.clone().into()));
        }
        if let Some(path) = &self.file {
            let read = fs::read(path).map_err(|e| {
                let error =
                    Error::config("publish", "the file can't be read; check its name and your rights to it");
                error.with("file", path.display()).because(e)
            })?;
            return Ok(Some(read.into()));
        }
        if io::stdin().is_terminal() {
            eprintln!("reading the body from the terminal; end it with Ctrl-D");
        }
        let mut body = Vec::new();
        io::stdin().read_to_end(&mut body)?;
        Ok(Some(body.into()))
    }
}

/// Publishes, and says what became of it.
pub(crate) async fn main(target: &Target, options: Options) -> std::result::Result<End, Failure> {
    Channel::new(&*options.channel)?;
    if options.ndjson {
        return bulk::main(target, options).await;
    }
    // before connecting: what is wrong here needs no broker
    let body = options.body()?;
    let envelope = options.envelope(body, None, &Env::system())?;
    let broker = target.connect().await?;
    let id = envelope.id().to_string();
    let confirmed = broker.send(options.outgoing(envelope)).await.await;
    close(&broker).await;
    let (outcome, receipt, error) = match confirmed {
        Ok(receipt) => (Outcome::Confirmed, Some(receipt), None),
        Err(error) => (outcome_of(&error), None, Some(error)),
    };
    if options.json {
        output::json(&Answer {
            outcome,
            channel: &options.channel,
            id,
            partition: receipt.map(|receipt| receipt.shard),
            position: receipt.map(|receipt| receipt.position),
            duplicate: receipt.is_some_and(|receipt| receipt.duplicate),
            error: error.as_ref().map(ToString::to_string),
        })?;
        return Ok(End::of(error.is_none()));
    }
    match (receipt, error) {
        (Some(receipt), _) if receipt.duplicate => {
            output::line(&format!("confirmed {id}: the broker had it already"))?;
        }
        (Some(_), _) => output::line(&format!("confirmed {id}"))?,
        (None, Some(error)) => {
            eprintln!(
                "{}: {id}",
                if error.is_unknown() { "unknown (it may be stored)" } else { "failed (it is not stored)" }
            );
            return Err(Error::from(error).into());
        }
        (None, None) => {}
    }
    Ok(End::Done)
}

fn outcome_of(error: &PublishError) -> Outcome {
    if error.is_unknown() { Outcome::Unknown } else { Outcome::Failed }
}
