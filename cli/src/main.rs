//! `postrider`: the command line for channels, groups and dead letters on Kafka, RabbitMQ and NATS.
//!
//! What a command does stands in the room of its name; here are only the words, and how it ends.

mod channels;
mod connect;
mod dlq;
mod doctor;
mod end;
mod interrupt;
mod management;
mod message;
mod output;
mod publish;
mod routes;
mod tail;
mod when;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::end::{End, Failure};

/// Publish and tail messages, look after channels and groups, and send dead letters back to those who gave them up; on Kafka, RabbitMQ and
/// NATS, with nothing but a URL.
#[derive(Parser)]
#[command(name = "postrider", version, after_help = AFTER_HELP, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    target: connect::Target,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  export POSTRIDER_URL=nats://127.0.0.1:4222
  postrider doctor
  echo '{\"order_id\":\"o-1\"}' | postrider publish orders --key o-1 --type order.placed --version 1
  postrider tail orders --from earliest --limit 10
  postrider dlq show orders.billing.dlq --reason exhausted
  postrider dlq redrive orders.billing.dlq --all --rate 100/s

Exit codes:
  0    done
  1    failed, refused, or done in part
  2    the arguments, the URL or a name are wrong; nothing was done
  130  stopped by Ctrl-C before it was done

What a command answers goes to standard output, everything else to standard error.";

#[derive(Subcommand)]
enum Command {
    /// Publish one message, or one for each line
    Publish(publish::Options),
    /// Follow a channel without disturbing its groups
    Tail(tail::Options),
    /// List channels with the groups that read them
    Channels(channels::Options),
    /// Look at the broker, and say what to do about what isn't well
    Doctor(doctor::Options),
    /// Dead letters: list, show, redrive, edit, purge
    #[command(subcommand)]
    Dlq(dlq::Command),
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match run(cli) {
        Ok(end) => end,
        Err(failure) => failure.tell(),
    };
    ExitCode::from(done.code())
}

fn run(cli: Cli) -> Result<End, Failure> {
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "postrider", &mut script);
        output::raw(&script)?;
        return Ok(End::Done);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async {
        let target = &cli.target;
        match cli.command {
            Command::Publish(options) => publish::main(target, options).await,
            Command::Tail(options) => tail::main(target, options).await,
            Command::Channels(options) => channels::main(target, options).await,
            Command::Doctor(options) => doctor::main(target, options).await,
            Command::Dlq(command) => dlq::main(target, command).await,
            Command::Completions { .. } => Ok(End::Done),
        }
    });
    // a client's thread may still wait for a broker that doesn't answer
    runtime.shutdown_background();
    done
}
