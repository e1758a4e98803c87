//! `postrider dlq purge`: closes letters for good, after asking.

use std::io::{self, IsTerminal, Write};

use clap::Args;
use postrider::{Error, Letters, Origin, Publisher};
use serde::Serialize;

use super::chosen::{BATCH, Filters, Walk};
use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::interrupt::Interrupt;
use crate::output;

/// Which letters.
#[derive(Args)]
#[command(after_help = "\
Examples:
  postrider dlq purge orders.billing.dlq --reason expired
  postrider dlq purge orders.billing.dlq --all --yes

What is purged is closed for good: no command brings it back.")]
pub(crate) struct Options {
    /// The dead-letter channel
    channel: String,
    /// All open letters
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filters: Filters,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Don't ask
    #[arg(long)]
    yes: bool,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Summary<'a> {
    channel: &'a str,
    chosen: usize,
    purged: usize,
}

/// Asks, and closes.
pub(crate) async fn main(target: &Target, options: Options) -> Result<End, Failure> {
    options.filters.check(options.all, "purge")?;
    if !options.yes && !io::stdin().is_terminal() {
        let message = "nobody is there to be asked, since standard input is no terminal; give `--yes` to purge without a question";
        return Err(Error::config("purge", message).into());
    }
    let broker = target.connect().await?;
    let mut letters = broker.letters(&options.channel).await?;
    let (mut walk, open) = Walk::begin(&mut letters).await?;
    let now = broker.env().wall_ms();
    let (mut batch, mut chosen): (Vec<_>, Vec<Origin>) = (Vec::new(), Vec::new());
    let limit = options.limit.unwrap_or(usize::MAX);
    while chosen.len() < limit {
        walk.next(&mut letters, BATCH, &mut batch).await?;
        if batch.is_empty() {
            break;
        }
        let fitting = batch.drain(..).filter(|letter| options.filters.fits(letter, now));
        chosen.extend(fitting.map(|letter| letter.origin));
    }
    chosen.truncate(limit);
    let mut purged = 0;
    let mut interrupted = false;
    if chosen.is_empty() || options.yes || agreed(chosen.len(), open, &options.channel)? {
        let interrupt = Interrupt::listen()?;
        let bar = output::progress(Some(chosen.len() as u64), "purged");
        for batch in chosen.chunks(BATCH.get()) {
            interrupted = interrupt.asked();
            if interrupted {
                break;
            }
            letters.close(batch).await?;
            purged += batch.len();
            bar.inc(batch.len() as u64);
        }
        bar.finish_and_clear();
    }
    letters.leave().await?;
    close(&broker).await;
    let summary = Summary { channel: &options.channel, chosen: chosen.len(), purged };
    if options.json {
        output::json(&summary)?;
    } else {
        output::line(&format!("{purged} of {} purged from {}", summary.chosen, summary.channel))?;
    }
    Ok(if interrupted { End::Interrupted } else { End::of(purged == summary.chosen) })
}

fn agreed(count: usize, open: u64, channel: &str) -> io::Result<bool> {
    eprint!("Close {count} of {open} open letters of {channel} for good? Type `yes`: ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}
