//! The conformance suite: what every adapter of postrider must do, as one test per case.
//!
//! An adapter's author implements [`Factory`] and writes `postrider_conformance::conformance!(MyFactory);` in a test file.
//! Cases are chosen by the capabilities that the connected broker declares: a missing capability is asserted to be refused as
//! `Unsupported`, and a case that needs fault controls which the factory doesn't have is skipped, saying so.
//!
//! With `POSTRIDER_CONFORMANCE_DIR` set, each case writes its outcome there as a line of JSON.

// A failing case must say why; in a suite of assertions that is what panicking is for.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod cases;
mod factory;
pub mod hostile;
mod kit;
mod ports;
pub mod proxy;
mod record;
mod round_trip;
pub mod vectors;

#[doc(hidden)]
pub mod groups;

pub use factory::{Controls, Doomed, Factory, Revocable, Settings};
pub use kit::{Bench, Case};
pub use ports::free_port;
pub use record::Outcome;
pub use round_trip::round_trip;

#[doc(hidden)]
pub mod __private {
    pub use crate::kit::run;
    pub use tokio;
}
