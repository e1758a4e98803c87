//! What a route promises to do when things go wrong, and how fast it may go. Plain data, and the retry decision; the runner
//! carries it out.

mod backoff;
mod options;

pub use backoff::{Backoff, Jitter, OnlyIf, RETRY_TIERS, Retry, Verdict, retry_tier};
pub(crate) use options::{BreakerOption, RateOption};
pub use options::{DeadLetterPolicy, OnExpired, OnGap, RouteOptions};
