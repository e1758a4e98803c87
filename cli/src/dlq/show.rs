//! `postrider dlq show`: open letters with what they say of their failure.

use std::fmt::Write as _;

use clap::Args;
use postrider::{BoxLetters, Letter, Letters, Publisher, rfc3339};
use serde::Serialize;

use super::chosen::{BATCH, Filters, Walk, failed_ms};
use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::message::{self, Shown};
use crate::output::{self, cell};

/// How many letters a table has, unless more are asked for.
const ROWS: u64 = 100;

/// Which letters.
#[derive(Args)]
#[command(after_help = "\
Examples:
  postrider dlq show orders.billing.dlq
  postrider dlq show orders.billing.dlq --reason exhausted --since 2h --limit 10
  postrider dlq show orders.billing.dlq --id 0193cafe-1c2d-7000-8000-000000000001 --long
  postrider dlq show orders.billing.dlq --json | jq -r .message.body")]
pub(crate) struct Options {
    /// The dead-letter channel
    channel: String,
    #[command(flatten)]
    filters: Filters,
    /// At most so many; 100 unless given, all with `--json`
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// All that each says, its headers and its whole body
    #[arg(long, conflicts_with = "json")]
    long: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// A letter as a JSON object. What it doesn't say is left out.
#[derive(Serialize)]
struct Told {
    place: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_chain: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliveries: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_failed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_failed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    channel: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    handler: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<String>,
    redrives: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    edited_from: Option<String>,
    message: Shown,
}

impl Told {
    fn of(letters: &BoxLetters, letter: &Letter) -> Self {
        let failure = letter.failure();
        let time = |ms: u64| rfc3339(i64::try_from(ms).unwrap_or(i64::MAX));
        Self {
            place: letters.describe(letter.origin),
            reason: failure.reason.map(postrider::Reason::as_str),
            error: failure.error,
            error_chain: failure.error_chain,
            attempts: failure.attempts,
            deliveries: failure.deliveries,
            first_failed_at: failure.first_failed_ms.map(time),
            last_failed_at: failure.last_failed_ms.map(time),
            channel: failure.channel.map(|name| name.to_string()),
            group: failure.group.map(|name| name.to_string()),
            handler: failure.handler,
            origin: failure.origin,
            redrives: failure.redrives,
            edited_from: failure.edited_from,
            message: Shown::of(&letter.envelope, |name| !is_failure(name)),
        }
    }
}

/// Shows.
pub(crate) async fn main(target: &Target, options: Options) -> Result<End, Failure> {
    let broker = target.connect().await?;
    let mut letters = broker.letters(&options.channel).await?;
    let (mut walk, open) = Walk::begin(&mut letters).await?;
    let limit = options.limit.unwrap_or(if options.json { u64::MAX } else { ROWS });
    let now = broker.env().wall_ms();
    let (mut batch, mut rows, mut shown, mut more) = (Vec::new(), Vec::new(), 0, false);
    'walk: loop {
        walk.next(&mut letters, BATCH, &mut batch).await?;
        if batch.is_empty() {
            break;
        }
        for letter in batch.drain(..).filter(|letter| options.filters.fits(letter, now)) {
            if shown == limit {
                more = true;
                break 'walk;
            }
            shown += 1;
            if options.json {
                output::json(&Told::of(&letters, &letter))?;
            } else if options.long {
                output::line(&long(&letters, &letter))?;
            } else {
                rows.push(row(&letter));
            }
        }
    }
    letters.leave().await?;
    close(&broker).await;
    if !rows.is_empty() {
        output::line(&output::table(
            &["FAILED AT", "ID", "KEY", "REASON", "ATTEMPTS", "REDRIVES", "ERROR", "BODY"],
            &rows,
        ))?;
    }
    match (shown, more) {
        (0, _) => eprintln!("no open letter of {open} fits"),
        (_, true) => eprintln!("{shown} shown, there are more; raise `--limit`"),
        _ => {}
    }
    Ok(End::Done)
}

fn row(letter: &Letter) -> Vec<String> {
    let failure = letter.failure();
    vec![
        rfc3339(i64::try_from(failed_ms(letter)).unwrap_or(i64::MAX)),
        letter.envelope.id().to_string(),
        cell(letter.envelope.key().map(|key| message::shortened(&message::printable(key), 24))),
        cell(failure.reason),
        cell(failure.attempts),
        failure.redrives.to_string(),
        cell(failure.error.map(|error| message::shortened(&error, 48))),
        message::short_body(&letter.envelope),
    ]
}

/// All of a letter, a fact a line.
fn long(letters: &BoxLetters, letter: &Letter) -> String {
    let told = Told::of(letters, letter);
    let mut out = format!("letter {}\n", told.place);
    let mut put = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            // writing to a string can't fail
            let _ = writeln!(out, "  {name}: {}", message::printable(value.as_bytes()));
        }
    };
    let chain = told.error_chain.as_deref().filter(|chain| Some(*chain) != told.error.as_deref());
    put("reason", told.reason);
    put("error", told.error.as_deref());
    put("error chain", chain);
    put("attempts", told.attempts.map(|count| count.to_string()).as_deref());
    put("deliveries", told.deliveries.map(|count| count.to_string()).as_deref());
    put("first failed at", told.first_failed_at.as_deref());
    put("last failed at", told.last_failed_at.as_deref());
    put("channel", told.channel.as_deref());
    put("group", told.group.as_deref());
    put("handler", told.handler.as_deref());
    put("origin", told.origin.as_deref());
    put("redrives", Some(&told.redrives.to_string()));
    put("edited from", told.edited_from.as_deref());
    put("id", Some(&letter.envelope.id().to_string()));
    put("key", letter.envelope.key().map(message::printable).as_deref());
    if !letter.envelope.type_name().is_empty() {
        put("type", Some(&format!("{}/{}", letter.envelope.type_name(), letter.envelope.version())));
    }
    put("content type", letter.envelope.content_type());
    let mut headers: Vec<_> =
        letter.envelope.headers().iter().filter(|(name, _)| !is_failure(name)).collect();
    // not every broker keeps an order of names
    headers.sort_by_key(|(name, _)| *name);
    for (name, value) in headers {
        put(&format!("header {name}"), Some(&value.to_string()));
    }
    put("body", Some(&message::body(&letter.envelope)));
    out
}

/// Whether a header says something of the failure, and not of the message.
fn is_failure(name: &str) -> bool {
    name.starts_with("postrider-dlq-")
}
