//! postrider beside hand-written loops on the raw clients, with the same guarantees, all in one run, in turns. `cargo xtask
//! bench` brings up the brokers, builds and calls it.
//!
//! A *case* is measured on a *broker* by three *subjects*: postrider, the loop that the client's own documentation shows
//! (usual), and the fastest honest loop on the client's public interface (best). Each run of a subject is a process of its own.

mod case;
mod counts;
mod floors;
mod ground;
mod growth;
mod job;
mod kafka;
mod memory;
mod meter;
mod nats;
mod options;
mod order;
mod pace;
mod postrider;
mod rabbitmq;
mod report;
mod rounds;
mod stamp;
mod table;
mod tally;
#[doc(hidden)]
pub mod valgrind;
mod versions;

use std::process::ExitCode;

use clap::Parser as _;

pub use meter::CountAllocations;

/// What both programs do: the command line is read, and either a whole bench or one run of one subject is made.
///
/// `allocations` counts the allocations of this process, where its allocator does.
pub fn main(allocations: Option<CountAllocations>) -> ExitCode {
    match options::Options::parse().run(allocations) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
