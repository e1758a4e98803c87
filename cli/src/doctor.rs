//! `postrider doctor`: looks at the broker without changing it, and says what to do about what isn't well.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use postrider::{Broker, Error, ErrorKind, Finding, Grade};
use serde::Serialize;

use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::management;
use crate::output;
use crate::routes::Routes;

/// What to look at.
#[derive(Args)]
#[command(after_help = "\
Examples:
  postrider doctor
  postrider doctor --routes routes.json   # the JSON of Router::describe()

Nothing at the broker is changed. The exit code is 1 where something failed; a warning alone leaves it 0.")]
pub(crate) struct Options {
    /// Compare with what these routes need: a file with the JSON of `Router::describe()`
    #[arg(long, value_name = "FILE")]
    routes: Option<PathBuf>,
    /// RabbitMQ's management API, which tells the version; port 15672 of a broker on port 5672, with the URL's user, if not given
    #[arg(long, value_name = "URL", env = "POSTRIDER_MANAGEMENT_URL", hide_env_values = true)]
    management_url: Option<String>,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    grade: Grade,
    findings: &'a [Finding],
}

/// Looks, and says what was found.
pub(crate) async fn main(target: &Target, options: Options) -> Result<End, Failure> {
    // a wrong URL or file is the caller's mistake, not the broker's
    let url = target.url()?;
    let routes = options.routes.as_deref().map(Routes::read).transpose()?;
    let began = Instant::now();
    let findings = match target.connect().await {
        Ok(broker) => {
            let found =
                format!("{} answers at {url} after {} ms", broker.name(), began.elapsed().as_millis());
            let mut findings = vec![Finding::ok("connection", found)];
            findings.extend(examined(target, &options, &broker).await?);
            if let Some(routes) = routes {
                findings.extend(compared(&routes, &broker).await?);
            }
            close(&broker).await;
            findings
        }
        Err(error) if error.kind() == ErrorKind::Config => return Err(error.into()),
        Err(error) => vec![Finding::failed("connection", full(&error), advice(&error))],
    };
    let worst = findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Ok);
    if options.json {
        output::json(&Report { grade: worst, findings: &findings })?;
    } else {
        for text in findings.iter().map(|finding| told(finding, output::has_colours())) {
            output::line(&text)?;
        }
    }
    Ok(End::of(worst != Grade::Failed))
}

async fn examined(target: &Target, options: &Options, broker: &Broker) -> Result<Vec<Finding>, Failure> {
    let mut findings = broker.examine().await;
    if broker.name() == "rabbitmq" {
        let asked = management::version(&target.url()?, options.management_url.as_deref()).await;
        findings.push(match asked {
            Ok(version) => Finding::ok("management API", format!("RabbitMQ {version}")),
            Err(error) => {
                let next = "without it `channels` and `dlq list` need names; enable the plugin `rabbitmq_management`, and give `--management-url`";
                Finding::warning("management API", full(&error), next)
            }
        });
    }
    Ok(findings)
}

async fn compared(routes: &Routes, broker: &Broker) -> Result<Vec<Finding>, Failure> {
    let there = broker.inventory(&routes.scope()?).await?;
    Ok(routes.compare(&there))
}

/// What the error says, and what is underneath.
fn full(error: &Error) -> String {
    format!("{error:?}").replace('\n', "")
}

fn advice(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::Unauthorized => "check user and password, and what the user may do",
        ErrorKind::Unsupported => "see the broker's page in the book for what it must have",
        _ => {
            "check that the broker runs, that host and port are right, and that nothing in between blocks them"
        }
    }
}

/// A finding as a line, with what to do next below it.
fn told(finding: &Finding, colours: bool) -> String {
    let (word, colour) = match finding.grade {
        Grade::Ok => ("ok", "32"),
        Grade::Warning => ("warning", "33"),
        Grade::Failed => ("failed", "31"),
    };
    let word = format!("{word:7}");
    let word = if colours { format!("\u{1b}[{colour}m{word}\u{1b}[0m") } else { word };
    let line = format!("{word}  {}: {}", finding.what, finding.found);
    match &finding.next {
        Some(next) => format!("{line}\n         next: {next}"),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_says_what_to_do_next() {
        let bad = Finding::failed("JetStream", "it is off", "start the server with `-js`");
        let both = [told(&Finding::ok("server", "nats-server 2.12"), false), told(&bad, false)];
        insta::assert_snapshot!(both.join("\n"), @r"
        ok       server: nats-server 2.12
        failed   JetStream: it is off
                 next: start the server with `-js`
        ");
        assert!(told(&bad, true).starts_with("\u{1b}[31mfailed \u{1b}[0m"));
    }
}
