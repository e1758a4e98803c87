//! One message for each line of NDJSON, pipelined.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};

use bytes::Bytes;
use indicatif::ProgressBar;
use postrider::{Broker, Confirm, Error, Publisher};
use serde::Serialize;
use tokio::sync::mpsc;

use super::{Options, Outcome, outcome_of};
use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::interrupt::Interrupt;
use crate::output;

/// How many messages may wait for their confirms; the adapter has a bound of its own in bytes.
const WINDOW: usize = 2048;
/// So many bad ones are told one by one.
const TOLD: u64 = 20;

/// A line and its number, from 1.
type Line = (u64, io::Result<Vec<u8>>);

/// What became of all lines.
#[derive(Default, Serialize)]
struct Summary {
    channel: String,
    lines: u64,
    confirmed: u64,
    failed: u64,
    unknown: u64,
}

struct Bulk {
    bar: ProgressBar,
    summary: Summary,
    waiting: VecDeque<(u64, Confirm)>,
    /// The last line of the input that was taken, blank ones counted.
    line: u64,
}

/// Publishes the lines, and says what became of them.
pub(super) async fn main(target: &Target, options: Options) -> Result<End, Failure> {
    let source: Box<dyn BufRead + Send> = match &options.file {
        Some(path) => Box::new(BufReader::new(File::open(path).map_err(|e| {
            let error =
                Error::config("publish", "the file can't be read; check its name and your rights to it");
            error.with("file", path.display()).because(e)
        })?)),
        None => Box::new(BufReader::new(io::stdin())),
    };
    let broker = target.connect().await?;
    let interrupt = Interrupt::listen()?;
    let mut lines = read(source);
    let summary = Summary { channel: options.channel.clone(), ..Summary::default() };
    let bar = output::progress(None, "confirmed");
    let mut bulk = Bulk { bar, summary, waiting: VecDeque::new(), line: 0 };
    loop {
        let next = tokio::select! {
            biased;
            () = interrupt.wait() => None,
            next = lines.recv() => next,
        };
        let Some((number, line)) = next else { break };
        bulk.publish(&broker, &options, number, line?).await;
        while bulk.waiting.len() >= WINDOW {
            bulk.confirm_one().await;
        }
    }
    // what was handed over gets its outcome, also after Ctrl-C
    while !bulk.waiting.is_empty() {
        bulk.confirm_one().await;
    }
    bulk.bar.finish_and_clear();
    close(&broker).await;
    let Summary { channel, lines, confirmed, failed, unknown } = &bulk.summary;
    if options.json {
        output::json(&bulk.summary)?;
    } else {
        output::line(&format!(
            "{confirmed} of {lines} published to {channel}: {confirmed} confirmed, {failed} failed, {unknown} unknown"
        ))?;
    }
    if interrupt.asked() {
        eprintln!("{}", bulk.how_to_go_on());
        return Ok(End::Interrupted);
    }
    Ok(End::of(confirmed == lines))
}

impl Bulk {
    async fn publish(&mut self, broker: &Broker, options: &Options, number: u64, line: Vec<u8>) {
        if !self.takes(number, &line) {
            return;
        }
        let key = match read_line(&line, options.key_from.as_deref()) {
            Ok(key) => key,
            Err(why) => {
                let next = "mend the line and publish it alone; the other lines are published";
                return self.told(number, Outcome::Failed, &format!("{why}; {next}"));
            }
        };
        match options.envelope(Some(Bytes::from(line)), key.as_deref(), broker.env()) {
            Ok(envelope) => {
                let confirm = broker.send(options.outgoing(envelope)).await;
                self.waiting.push_back((number, confirm));
            }
            Err(error) => self.told(number, Outcome::Failed, &error.to_string()),
        }
    }

    /// Counts a line; answers whether there is a message in it.
    fn takes(&mut self, number: u64, line: &[u8]) -> bool {
        self.line = number;
        let blank = line.iter().all(u8::is_ascii_whitespace);
        self.summary.lines += u64::from(!blank);
        !blank
    }

    /// What is said after Ctrl-C: the line is that of the input, also where some have no message.
    fn how_to_go_on(&self) -> String {
        format!("stopped by Ctrl-C after line {}; go on with `tail -n +{}`", self.line, self.line + 1)
    }

    async fn confirm_one(&mut self) {
        let Some((number, confirm)) = self.waiting.pop_front() else { return };
        match confirm.await {
            Ok(_) => {
                self.summary.confirmed += 1;
                self.bar.inc(1);
            }
            Err(error) => self.told(number, outcome_of(&error), &error.to_string()),
        }
    }

    fn told(&mut self, number: u64, outcome: Outcome, why: &str) {
        let word = match outcome {
            Outcome::Confirmed => return,
            Outcome::Failed => {
                self.summary.failed += 1;
                "failed"
            }
            Outcome::Unknown => {
                self.summary.unknown += 1;
                "unknown"
            }
        };
        let bad = self.summary.failed + self.summary.unknown;
        self.bar.suspend(|| {
            if bad <= TOLD {
                eprintln!("line {number} {word}: {why}");
            } else if bad == TOLD + 1 {
                eprintln!("further ones are counted only");
            }
        });
    }
}

/// Lines are read on a thread of their own: nothing interrupts a read from a terminal or a pipe.
fn read(mut source: Box<dyn BufRead + Send>) -> mpsc::Receiver<Line> {
    let (sender, lines) = mpsc::channel(256);
    std::thread::spawn(move || {
        for number in 1.. {
            let mut line = Vec::new();
            let item = match source.read_until(b'\n', &mut line) {
                Ok(0) => return,
                Ok(_) => {
                    while line.last().is_some_and(|byte| matches!(byte, b'\n' | b'\r')) {
                        line.pop();
                    }
                    Ok(line)
                }
                Err(error) => Err(error),
            };
            let failed = item.is_err();
            if sender.blocking_send((number, item)).is_err() || failed {
                return;
            }
        }
    });
    lines
}

/// Checks that a line is JSON; answers its key, where a field is one.
fn read_line(line: &[u8], key_from: Option<&str>) -> Result<Option<Vec<u8>>, String> {
    let wrong = |e: serde_json::Error| format!("it is not JSON ({e})");
    let Some(field) = key_from else {
        return serde_json::from_slice::<serde::de::IgnoredAny>(line).map(|_| None).map_err(wrong);
    };
    let value: serde_json::Value = serde_json::from_slice(line).map_err(wrong)?;
    match value.get(field) {
        Some(serde_json::Value::String(key)) => Ok(Some(key.clone().into_bytes())),
        Some(serde_json::Value::Number(key)) => Ok(Some(key.to_string().into_bytes())),
        Some(_) => Err(format!("its field `{field}` is neither text nor a number, so it can't be the key")),
        None => Err(format!("it has no field `{field}` for its key")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_ctrl_c_the_line_of_the_input_is_named_blank_ones_counted() {
        let summary = Summary::default();
        let mut bulk = Bulk { bar: ProgressBar::hidden(), summary, waiting: VecDeque::new(), line: 0 };
        assert!(bulk.how_to_go_on().ends_with("`tail -n +1`"), "nothing was taken");
        // 15 lines, every other one blank
        let input: Vec<String> =
            (1..=15).map(|n| if n % 2 == 1 { format!("{{\"n\":{n}}}") } else { " \t".into() }).collect();
        for (number, line) in (1..).zip(&input) {
            bulk.takes(number, line.as_bytes());
            if bulk.summary.lines == 5 {
                break;
            }
        }
        assert_eq!(bulk.how_to_go_on(), "stopped by Ctrl-C after line 9; go on with `tail -n +10`");
        // what follows has none of those messages
        let rest: Vec<_> = input.iter().skip(9).filter(|line| line.starts_with('{')).cloned().collect();
        assert_eq!(rest, [11, 13, 15].map(|n| format!("{{\"n\":{n}}}")));
        assert_eq!(bulk.summary.lines, 5, "a blank line is no message");
    }

    #[test]
    fn a_line_is_json_and_has_its_key() {
        assert_eq!(read_line(b"{\"a\":1}", None), Ok(None));
        assert_eq!(read_line(b"{\"a\":\"x\"}", Some("a")), Ok(Some(b"x".to_vec())));
        assert_eq!(read_line(b"{\"a\":7}", Some("a")), Ok(Some(b"7".to_vec())));
        assert!(read_line(b"{\"a\":[]}", Some("a")).is_err_and(|why| why.contains("neither")));
        assert!(read_line(b"{}", Some("a")).is_err_and(|why| why.contains("no field `a`")));
        assert!(read_line(b"{oops}", None).is_err_and(|why| why.contains("not JSON")));
    }
}
