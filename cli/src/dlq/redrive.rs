//! `postrider dlq redrive`: letters back to the group that gave them up. Each is closed when its copy is confirmed, so that a run can be
//! stopped anywhere and begun again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use postrider::{BoxLetters, Broker, Error, Letter, Letters, Publisher, Redrive, Redriven, deadline_from};
use serde::Serialize;

use super::chosen::{BATCH, Filters, Walk};
use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::interrupt::Interrupt;
use crate::output;
use crate::when::rate;

/// So many that fail are told one by one.
const TOLD: u64 = 20;
/// How often a slow rate is looked after.
const BEAT: Duration = Duration::from_millis(100);

/// Which letters, and how fast.
#[derive(Args)]
#[command(after_help = "\
Examples:
  postrider dlq redrive orders.billing.dlq --all --dry-run
  postrider dlq redrive orders.billing.dlq --all --rate 100/s
  postrider dlq redrive orders.billing.dlq --reason exhausted --error 'card service' --since 2h

Only the group that gave a letter up gets it, as a first attempt, with its key, id and headers. Ctrl-C stops after what is
under way; what isn't redriven is open, and the same command goes on with it. Letters that come meanwhile are left alone.")]
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
    limit: Option<u64>,
    /// Not faster than this: `100/s`, `30/m`
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<Duration>,
    /// Leave alone what was redriven so often already
    #[arg(long, value_name = "N")]
    max_redrives: Option<u32>,
    /// For letters that don't say whose they are: to a group of this channel
    #[arg(long, value_name = "CHANNEL", requires = "to_group")]
    to_channel: Option<String>,
    /// … to this group
    #[arg(long, value_name = "GROUP", requires = "to_channel")]
    to_group: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

/// What became of the letters.
#[derive(Default, Serialize)]
struct Summary {
    channel: String,
    dry_run: bool,
    chosen: u64,
    redriven: u64,
    failed: u64,
    /// Redriven as often as is allowed.
    limited: u64,
    /// How many went, or would go, to each group, by `channel/group`.
    to: BTreeMap<String, u64>,
    interrupted: bool,
}

struct Run<'a> {
    broker: &'a Broker,
    letters: BoxLetters,
    options: &'a Options,
    how: Redrive,
    summary: Summary,
    bar: ProgressBar,
}

/// Sends back.
pub(crate) async fn main(target: &Target, options: Options) -> Result<End, Failure> {
    options.filters.check(options.all, "redrive")?;
    let mut how = Redrive::new();
    if let Some(limit) = options.max_redrives {
        how = how.limit(limit);
    }
    if let (Some(channel), Some(group)) = (&options.to_channel, &options.to_group) {
        how = how.to(channel, group)?;
    }
    let broker = target.connect().await?;
    let interrupt = Interrupt::listen()?;
    let mut letters = broker.letters(&options.channel).await?;
    let (walk, open) = Walk::begin(&mut letters).await?;
    let bar = output::progress(Some(open.min(options.limit.unwrap_or(u64::MAX))), "redriven");
    let summary =
        Summary { channel: options.channel.clone(), dry_run: options.dry_run, ..Summary::default() };
    let mut run = Run { broker: &broker, letters, options: &options, how, summary, bar };
    let walked = run.walk(walk, &interrupt).await;
    run.bar.finish_and_clear();
    let left = match run.letters.leave().await {
        Ok(()) => run.letters.count().await.ok(),
        // the broker finds out by itself; what was done is told all the same
        Err(_) => None,
    };
    let summary = run.summary;
    close(&broker).await;
    if options.json {
        output::json(&summary)?;
    } else {
        output::line(&summary.text())?;
    }
    walked?;
    if summary.interrupted {
        let left = output::cell(left);
        eprintln!(
            "stopped by Ctrl-C; {left} letters are open, nothing is lost: the same command goes on with them"
        );
        return Ok(End::Interrupted);
    }
    Ok(End::of(summary.failed == 0))
}

impl Run<'_> {
    async fn walk(&mut self, mut walk: Walk, interrupt: &Interrupt) -> Result<(), Error> {
        let now = self.broker.env().wall_ms();
        // with a rate, as many as fall into one beat
        let most = self.options.rate.map_or(BATCH, |each| {
            let fits = BEAT.as_nanos() / each.as_nanos().max(1);
            NonZeroUsize::new(usize::try_from(fits).unwrap_or(usize::MAX))
                .unwrap_or(NonZeroUsize::MIN)
                .min(BATCH)
        });
        let limit = self.options.limit.unwrap_or(u64::MAX);
        let mut chosen = Vec::new();
        while self.summary.chosen < limit {
            if interrupt.asked() {
                self.summary.interrupted = true;
                break;
            }
            let left = usize::try_from(limit - self.summary.chosen).unwrap_or(usize::MAX);
            let most = NonZeroUsize::new(left).map_or(most, |left| left.min(most));
            walk.next(&mut self.letters, most, &mut chosen).await?;
            if chosen.is_empty() {
                break;
            }
            chosen.retain(|letter| self.options.filters.fits(letter, now));
            self.summary.chosen += chosen.len() as u64;
            if self.options.dry_run {
                self.pretend(&chosen);
            } else if !chosen.is_empty() {
                let (began, sent) = (Instant::now(), chosen.len() as u32);
                if !self.send(&chosen).await {
                    eprintln!("the broker takes none at present; the rest is left as it is");
                    break;
                }
                if let Some(each) = self.options.rate {
                    tokio::select! {
                        () = tokio::time::sleep_until(deadline_from(began, each.saturating_mul(sent)).into()) => {}
                        () = interrupt.wait() => {}
                    }
                }
            }
            chosen.clear();
        }
        Ok(())
    }

    /// Answers whether it makes sense to go on: not where all of them failed for something that passes.
    async fn send(&mut self, chosen: &[Letter]) -> bool {
        let mut passing = 0;
        let outcomes = self.broker.redrive(&mut self.letters, chosen, &self.how).await;
        for (letter, outcome) in chosen.iter().zip(outcomes) {
            match outcome {
                Ok(Redriven::Sent(_)) => {
                    self.summary.redriven += 1;
                    *self.summary.to.entry(self.destination(letter)).or_default() += 1;
                    self.bar.inc(1);
                }
                Ok(_) => self.summary.limited += 1,
                Err(error) => {
                    passing += usize::from(error.is_temporary());
                    self.failed(&error);
                }
            }
        }
        passing < chosen.len()
    }

    fn pretend(&mut self, chosen: &[Letter]) {
        for letter in chosen {
            let count = letter.failure().redrives;
            if self.options.max_redrives.is_some_and(|limit| count >= limit) {
                self.summary.limited += 1;
            } else {
                *self.summary.to.entry(self.destination(letter)).or_default() += 1;
            }
        }
    }

    fn destination(&self, letter: &Letter) -> String {
        let failure = letter.failure();
        match (&self.options.to_channel, &self.options.to_group, failure.channel, failure.group) {
            (Some(channel), Some(group), ..) => format!("{channel}/{group}"),
            (_, _, Some(channel), Some(group)) => format!("{channel}/{group}"),
            _ => "nobody: the letter doesn't say whose it is".into(),
        }
    }

    fn failed(&mut self, error: &Error) {
        self.summary.failed += 1;
        let failed = self.summary.failed;
        self.bar.suspend(|| {
            if failed <= TOLD {
                eprintln!("not redriven: {error}");
            } else if failed == TOLD + 1 {
                eprintln!("further ones are counted only");
            }
        });
    }
}

impl Summary {
    fn text(&self) -> String {
        let to: Vec<_> = self.to.iter().map(|(to, count)| format!("{to} {count}")).collect();
        let to = if to.is_empty() { String::new() } else { format!(" ({})", to.join(", ")) };
        let mut text = if self.dry_run {
            format!("{} would be redriven{to}", self.to.values().sum::<u64>())
        } else {
            format!("{} of {} redriven{to}", self.redriven, self.chosen)
        };
        for (count, what) in [
            (self.failed, "failed and are open still"),
            (self.limited, "left alone, redriven as often as is allowed"),
        ] {
            if count > 0 {
                // writing to a string can't fail
                let _ = write!(text, "; {count} {what}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_how_many_of_how_many() {
        let mut summary = Summary { chosen: 500, redriven: 500, ..Summary::default() };
        summary.to.insert("orders/billing".into(), 500);
        assert_eq!(summary.text(), "500 of 500 redriven (orders/billing 500)");
        (summary.redriven, summary.failed, summary.limited) = (497, 2, 1);
        assert_eq!(
            summary.text(),
            "497 of 500 redriven (orders/billing 500); 2 failed and are open still; 1 left alone, redriven as often as is allowed"
        );
        summary.dry_run = true;
        assert!(summary.text().starts_with("500 would be redriven (orders/billing 500)"));
    }
}
