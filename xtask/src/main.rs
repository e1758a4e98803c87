//! `cargo xtask`: the commands of postrider's developers, as words on the command line.
//!
//! Each command is in the module of its name. This crate depends on no other of the
//! workspace, so that it is built at once even while they don't compile.

mod adapters;
mod bench;
mod brokers;
mod conformance_table;
mod counts;
mod docs;
mod faults;
mod fuzz;
mod instructions;
mod interrupt;
mod load;
mod nextest;
mod nightly;
mod ports;
mod set;
mod simulate;
mod steps;
mod stress;
mod test;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The commands of postrider's developers.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Real brokers on this machine: fetch, start, stop, and do them harm
    #[command(subcommand)]
    Brokers(brokers::Action),
    /// Everything that a change has to pass, on brokers brought up for it
    Test(test::Options),
    /// Slow checks that rarely fail: fuzzing, long fault runs, features, benches, tests under load
    Nightly(nightly::Options),
    /// Tests again and again, beside a busy machine
    Stress(stress::Options),
    /// The fault run: brokers and consumers are killed under load, and nothing may be lost
    Faults(faults::Options),
    /// Hostile input for everything that comes from outside, by libFuzzer
    Fuzz(fuzz::Options),
    /// Whole services in simulated time, each following from its seed
    Simulate(simulate::Options),
    /// Speed beside a hand-written loop, in one run
    Bench(bench::Options),
    /// How many instructions a message costs, beside what it cost before
    Instructions(instructions::Options),
    /// The reference and the book
    Docs,
    /// Install the pinned cargo tools that `test`, `stress` and `nightly` need
    Tools,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Brokers(action) => brokers::main(&action),
        Command::Test(options) => test::main(&options),
        Command::Nightly(options) => nightly::main(&options),
        Command::Stress(options) => stress::main(&options),
        Command::Faults(options) => faults::main(&options),
        Command::Fuzz(options) => fuzz::main(&options),
        Command::Simulate(options) => simulate::main(&options),
        Command::Bench(options) => bench::main(&options),
        Command::Instructions(options) => instructions::main(&options),
        Command::Docs => docs::main(),
        Command::Tools => tools::main(),
    };
    match done {
        Ok(code) => code,
        Err(error) if error.is::<interrupt::Interrupted>() => ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
