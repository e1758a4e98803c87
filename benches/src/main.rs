//! postrider beside a hand-written loop with the same guarantees, both in one run, in turns. `cargo xtask bench` builds and
//! calls it.

mod embedded;
mod order;
mod report;
mod rounds;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

use report::{Report, Row};
use rounds::rounds;

/// Measures postrider beside the fastest honest loop, in turns.
#[derive(Parser)]
#[command(name = "bench")]
struct Options {
    /// Messages a round
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..))]
    messages: u64,
    /// Rounds, each of both subjects
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Write the figures there as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let (allocations, bare) =
        (embedded::allocations(embedded::postrider)?, embedded::allocations(embedded::best)?);
    eprintln!("allocations a message: postrider {allocations:.2}, best {bare:.2}");
    let figures = rounds(options.rounds, options.messages, embedded::postrider, embedded::best)?;
    let row = Row::embedded(&figures, allocations, bare);
    let report = Report { messages: options.messages, rounds: options.rounds, results: vec![row] };
    println!("{report}");
    if let Some(file) = &options.json {
        let json = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, json + "\n").with_context(|| format!("{} can't be written", file.display()))?;
    }
    Ok(())
}
