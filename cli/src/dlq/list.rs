//! `postrider dlq list`: dead-letter channels, how many letters are open, since when.

use std::num::NonZeroUsize;

use clap::Args;
use postrider::{Broker, ErrorKind, Letters, Result, rfc3339};
use serde::Serialize;

use super::chosen::failed_ms;
use crate::channels::Named;
use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::output::{self, cell};

/// Which channels.
#[derive(Args)]
#[command(after_help = "\
Examples:
  postrider dlq list
  postrider dlq list --channel orders.billing.dlq --json

Channels whose name ends in `.dlq`, as dead-letter channels do unless a route names another; those that `--channel` names.")]
pub(crate) struct Options {
    #[command(flatten)]
    named: Named,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Listed {
    dead_letters: Vec<Entry>,
}

/// A dead-letter channel.
#[derive(Serialize)]
struct Entry {
    channel: String,
    open: u64,
    oldest: Option<String>,
    /// Who gave up on the oldest.
    from_channel: Option<String>,
    from_group: Option<String>,
}

/// Lists.
pub(crate) async fn main(target: &Target, options: Options) -> std::result::Result<End, Failure> {
    let broker = target.connect().await?;
    let inventory = options.named.inventory(target, &broker).await?;
    let named = options.named.names();
    let mut dead_letters = Vec::new();
    for entry in &inventory.channels {
        let ends = entry.channel.rsplit_once('.').is_some_and(|(_, last)| last == "dlq");
        if !entry.foreign && (ends || named.contains(&entry.channel)) {
            dead_letters.extend(look(&broker, &entry.channel).await?);
        }
    }
    close(&broker).await;
    if options.json {
        output::json(&Listed { dead_letters })?;
        return Ok(End::Done);
    }
    if dead_letters.is_empty() {
        eprintln!(
            "there is no dead-letter channel{}",
            if named.is_empty() { " yet" } else { " of that name" }
        );
        return Ok(End::of(named.is_empty()));
    }
    let rows: Vec<_> = dead_letters
        .iter()
        .map(|entry| {
            let from = entry.from_channel.as_ref().zip(entry.from_group.as_ref());
            let from = from.map(|(channel, group)| format!("{channel} → {group}"));
            vec![entry.channel.clone(), entry.open.to_string(), cell(entry.oldest.as_ref()), cell(from)]
        })
        .collect();
    output::line(&output::table(&["CHANNEL", "OPEN", "OLDEST", "GIVEN UP BY"], &rows))?;
    Ok(End::Done)
}

/// How many letters are open, and what the oldest says; nothing where the channel is gone meanwhile.
async fn look(broker: &Broker, channel: &str) -> Result<Option<Entry>> {
    let mut letters = match broker.letters(channel).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let open = letters.count().await?;
    let mut first = Vec::new();
    letters.read(NonZeroUsize::MIN, &mut first).await?;
    letters.leave().await?;
    let failure = first.first().map(postrider::Letter::failure);
    Ok(Some(Entry {
        channel: channel.to_owned(),
        open,
        oldest: first.first().map(|letter| rfc3339(i64::try_from(failed_ms(letter)).unwrap_or(i64::MAX))),
        from_channel: failure.as_ref().and_then(|failure| failure.channel.as_ref()).map(ToString::to_string),
        from_group: failure.as_ref().and_then(|failure| failure.group.as_ref()).map(ToString::to_string),
    }))
}
