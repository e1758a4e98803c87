//! `cargo xtask brokers`: the script of the brokers, on its default ports and data.
//!
//! The names of brokers and of their ports stand here; how one is fetched and started stands in `brokers.sh`.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use clap::builder::PossibleValuesParser;

use crate::steps::exit_code_of;
use crate::workspace::Workspace;

/// A broker that the script knows.
pub(crate) struct Broker {
    /// Its name.
    pub(crate) name: &'static str,
    /// The variables that say its ports.
    pub(crate) ports: &'static [&'static str],
    /// What else is set for tests.
    pub(crate) settings: &'static [(&'static str, &'static str)],
}

/// Claims that end within a test's patience.
const KAFKA_EXTRA: &str = "
group.min.session.timeout.ms=500
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=3000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=300
";

/// How long a message may be out before the broker takes its queue away: 60 s.
const RABBITMQ_EXTRA: &str = "consumer_timeout = 60000\n";

/// All brokers.
pub(crate) const BROKERS: &[Broker] = &[
    Broker {
        name: "kafka",
        ports: &["KAFKA_PORT", "KAFKA_CONTROLLER_PORT", "KAFKA_TLS_PORT"],
        settings: &[("BROKERS_KAFKA_EXTRA", KAFKA_EXTRA)],
    },
    Broker {
        name: "rabbitmq",
        ports: &[
            "RABBITMQ_PORT",
            "RABBITMQ_TLS_PORT",
            "RABBITMQ_MANAGEMENT_PORT",
            "RABBITMQ_DIST_PORT",
            "RABBITMQ_EPMD_PORT",
        ],
        settings: &[("BROKERS_RABBITMQ_EXTRA", RABBITMQ_EXTRA)],
    },
    Broker { name: "nats", ports: &["NATS_PORT", "NATS_MONITOR_PORT"], settings: &[] },
    Broker {
        name: "rabbitmq4",
        ports: &[
            "RABBITMQ4_PORT",
            "RABBITMQ4_TLS_PORT",
            "RABBITMQ4_MANAGEMENT_PORT",
            "RABBITMQ4_DIST_PORT",
            "RABBITMQ4_EPMD_PORT",
        ],
        settings: &[("BROKERS_RABBITMQ_EXTRA", RABBITMQ_EXTRA)],
    },
];

/// What to do with brokers.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Action {
    /// Fetch what is missing (kafka, rabbitmq and nats if none is named)
    Install(Any),
    /// Install if need be, start, wait until ready, print the URLs
    Up(Any),
    /// Stop in good order, keep the data (all that have data if none is named)
    Down(Any),
    /// Stop and delete data, settings and log (all that have data if none is named)
    Wipe(Any),
    /// SIGKILL the whole broker, keep the data: a crash
    Kill(Each),
    /// Start again on the data, settings and ports of the last `up`
    Start(Each),
    /// SIGSTOP: the ports still accept, nothing answers
    Pause(Each),
    /// SIGCONT
    Resume(Each),
    /// State, pid, memory, version, URL (all that have data if none is named)
    Status(Any),
    /// Print `export NATS_URL=…` lines, for `eval "$(cargo xtask brokers env)"`
    Env(Any),
    /// Print the log
    Log(One),
    /// Run rabbitmqctl: `ctl rabbitmq list_queues name messages`
    Ctl {
        /// rabbitmq or rabbitmq4
        #[arg(value_parser = ["rabbitmq", "rabbitmq4"])]
        name: String,
        /// What rabbitmqctl is given
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make a throwaway CA, server and client certificate; print where they are
    Tls,
}

/// Any number of brokers, none included.
#[derive(Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct Any {
    /// The brokers
    #[arg(value_name = "NAME", value_parser = known())]
    names: Vec<String>,
}

/// At least one broker.
#[derive(Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct Each {
    /// The brokers
    #[arg(value_name = "NAME", required = true, value_parser = known())]
    names: Vec<String>,
}

/// One broker.
#[derive(Debug, PartialEq, Eq, clap::Args)]
pub(crate) struct One {
    /// The broker
    #[arg(value_parser = known())]
    name: String,
}

/// The names of all brokers; a misspelt one is answered with the nearest.
fn known() -> PossibleValuesParser {
    BROKERS.iter().map(|broker| broker.name).collect::<Vec<_>>().into()
}

impl Action {
    /// The arguments of the script.
    fn arguments(&self) -> Vec<&str> {
        let (command, names) = match self {
            Self::Install(Any { names }) => ("install", names),
            Self::Up(Any { names }) => ("up", names),
            Self::Down(Any { names }) => ("down", names),
            Self::Wipe(Any { names }) => ("wipe", names),
            Self::Kill(Each { names }) => ("kill", names),
            Self::Start(Each { names }) => ("start", names),
            Self::Pause(Each { names }) => ("pause", names),
            Self::Resume(Each { names }) => ("resume", names),
            Self::Status(Any { names }) => ("status", names),
            Self::Env(Any { names }) => ("env", names),
            Self::Log(One { name }) => return vec!["log", name],
            Self::Ctl { name, arguments } => {
                return ["ctl", name].into_iter().chain(arguments.iter().map(String::as_str)).collect();
            }
            Self::Tls => return vec!["tls"],
        };
        std::iter::once(command).chain(names.iter().map(String::as_str)).collect()
    }
}

/// Calls the script; its output and its exit code are ours.
pub(crate) fn main(action: &Action) -> Result<ExitCode> {
    let status = script(&Workspace::find()?.brokers_script())
        .args(action.arguments())
        .status()
        .context("bash could not be run; the script of the brokers needs it")?;
    Ok(exit_code_of(status))
}

/// The script, without arguments yet.
pub(crate) fn script(path: &Path) -> Command {
    let mut command = Command::new("bash");
    command.arg(path);
    command
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        action: Action,
    }

    fn parse(line: &str) -> Result<Line, clap::Error> {
        Line::try_parse_from(std::iter::once("brokers").chain(line.split(' ')))
    }

    #[test]
    fn the_script_gets_what_was_typed() {
        for line in
            ["up", "up nats kafka", "kill nats", "log rabbitmq4", "ctl rabbitmq list_queues -q name", "tls"]
        {
            let parsed = parse(line).expect("it is a command");
            assert_eq!(parsed.action.arguments().join(" "), line);
        }
    }

    #[test]
    fn a_misspelt_broker_is_answered_with_the_nearest() {
        let error = parse("up nast").expect_err("there is no such broker").to_string();
        assert!(error.contains("'nats'") && error.contains("similar"), "{error}");
    }

    #[test]
    fn versions_have_one_source() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace's root");
        let read = |name: &str| std::fs::read_to_string(root.join(name)).expect("the file is there");
        let (versions, compose, script) = (read(".env"), read("compose.yaml"), read("xtask/brokers.sh"));
        for broker in BROKERS {
            let variable = format!("{}_VERSION", broker.name.to_uppercase());
            let line = versions.lines().find_map(|line| line.strip_prefix(&format!("{variable}=")));
            let version = line.unwrap_or_else(|| panic!(".env has no {variable}"));
            assert!(compose.contains(&format!("${{{variable}}}")), "compose.yaml does not use {variable}");
            for (name, text) in [("compose.yaml", &compose), ("brokers.sh", &script)] {
                let names = |line: &&str| {
                    [":", "=", ":-", ":-v"].iter().any(|before| line.contains(&format!("{before}{version}")))
                };
                let own = text.lines().find(names);
                assert_eq!(own, None, "{name} has a version of its own");
            }
        }
    }

    #[test]
    fn harm_is_done_to_named_brokers_only() {
        for line in ["kill", "start", "pause", "resume", "log", "ctl"] {
            parse(line).expect_err("a name is wanted");
        }
    }
}
