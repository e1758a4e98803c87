//! `postrider dlq edit`: a corrected body in the place of one letter.

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use postrider::{BoxLetters, Error, ErrorKind, Letter, Letters, Publisher};
use serde::Serialize;

use super::chosen::{BATCH, Filters, Walk};
use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::output;

/// Which letter, and what it is to say.
#[derive(Args)]
#[command(after_help = "\
Examples:
  postrider dlq show orders.billing.dlq --id ID --json | jq -r .message.body > order.json
  postrider dlq edit orders.billing.dlq --id ID --file order.json
  postrider dlq redrive orders.billing.dlq --id ID

A copy with the new body is appended, and names the first in its header `postrider-dlq-edited-from`; then the first is closed.")]
pub(crate) struct Options {
    /// The dead-letter channel
    channel: String,
    /// The id of the message
    #[arg(long)]
    id: String,
    /// Where several letters have the id: the place of the one that is meant, as `dlq show --long` tells it
    #[arg(long)]
    place: Option<String>,
    /// The file with the new body; standard input if not given
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Answer<'a> {
    channel: &'a str,
    id: &'a str,
    edited_from: String,
}

/// Puts the new body in the place of the old.
pub(crate) async fn main(target: &Target, options: Options) -> Result<End, Failure> {
    let mut body = Vec::new();
    match &options.file {
        Some(path) => {
            body = std::fs::read(path).map_err(|e| {
                let error =
                    Error::config("edit", "the file can't be read; check its name and your rights to it");
                error.with("file", path.display()).because(e)
            })?;
        }
        None => {
            io::stdin().read_to_end(&mut body)?;
        }
    }
    let broker = target.connect().await?;
    let mut letters = broker.letters(&options.channel).await?;
    let letter = find(&mut letters, &options, broker.env().wall_ms()).await?;
    let json = letter.envelope.content_type().is_some_and(|kind| kind.ends_with("json"));
    if json && serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_err() {
        eprintln!("the letter's content type is JSON, and the new body isn't: whoever decodes it will fail");
    }
    let edited_from = letters.describe(letter.origin);
    broker.edit(&mut letters, &letter, body.into()).await?;
    letters.leave().await?;
    close(&broker).await;
    let Options { channel, id, .. } = &options;
    if options.json {
        output::json(&Answer { channel, id, edited_from })?;
    } else {
        output::line(&format!("edited {id}: a corrected letter stands in the place of {edited_from}"))?;
        eprintln!("next: `postrider dlq redrive {channel} --id {id}` sends it back");
    }
    Ok(End::Done)
}

async fn find(letters: &mut BoxLetters, options: &Options, now_ms: u64) -> Result<Letter, Failure> {
    let wanted = Filters::of_id(&options.id);
    let (mut walk, open) = Walk::begin(letters).await?;
    let (mut batch, mut found) = (Vec::new(), Vec::new());
    loop {
        walk.next(letters, BATCH, &mut batch).await?;
        if batch.is_empty() {
            break;
        }
        found.extend(batch.drain(..).filter(|letter| wanted.fits(letter, now_ms)));
    }
    let places: Vec<_> = found.iter().map(|letter| letters.describe(letter.origin)).collect();
    let at = match &options.place {
        Some(place) => places.iter().position(|other| other == place),
        None if found.len() > 1 => {
            let message = "several letters have this id; say which one by `--place`";
            let error = Error::new(ErrorKind::Mismatch, "edit", message).with("id", &options.id);
            return Err(Failure::Error(error.with("places", places.join(" ")), None));
        }
        None => (!found.is_empty()).then_some(0),
    };
    if let Some(at) = at {
        return Ok(found.swap_remove(at));
    }
    let message = "no open letter fits; `postrider dlq show` tells ids and places";
    let error = Error::new(ErrorKind::NotFound, "edit", message).with("id", &options.id).with("open", open);
    Err(Failure::Error(error, None))
}
