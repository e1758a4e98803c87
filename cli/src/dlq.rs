//! `postrider dlq`: dead letters listed, shown, sent back, corrected, closed. How a broker keeps them is the adapter's.

mod chosen;
mod edit;
mod list;
mod purge;
mod redrive;
mod show;

use clap::Subcommand;

use crate::connect::Target;
use crate::end::{End, Failure};

/// What to do with dead letters.
#[derive(Subcommand)]
#[command(after_help = "\
A dead letter is open until it is redriven, edited or purged; only these commands close one. Handlers that read the
channel are groups of their own and close nothing.")]
pub(crate) enum Command {
    /// List dead-letter channels with how many letters are open
    List(list::Options),
    /// Show open letters, the oldest first
    Show(show::Options),
    /// Send letters back to the group that gave them up, and to that alone
    Redrive(redrive::Options),
    /// Put a corrected body in the place of a letter
    Edit(edit::Options),
    /// Close letters for good
    Purge(purge::Options),
}

/// Does it.
pub(crate) async fn main(target: &Target, command: Command) -> Result<End, Failure> {
    match command {
        Command::List(options) => list::main(target, options).await,
        Command::Show(options) => show::main(target, options).await,
        Command::Redrive(options) => redrive::main(target, options).await,
        Command::Edit(options) => edit::main(target, options).await,
        Command::Purge(options) => purge::main(target, options).await,
    }
}
