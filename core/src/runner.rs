//! Runs routes: everything between a delivery and its settlement. Which routes there are is the router's.

mod admission;
mod crew;
mod dead_letter;
mod dispatcher;
mod events;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod held;
mod isolation;
mod lanes;
mod outputs;
mod parked;
mod plan;
mod pool;
mod report;
mod retry_copy;
mod running;
mod stop;
mod task;

pub(crate) use admission::Admission;
pub(crate) use crew::Orders;
pub(crate) use events::{output_cycle, started};
pub(crate) use plan::Plan;
pub(crate) use report::Status;
pub use report::{Report, RouteHealth, RouteReport, RouteState, ServiceHealth};
pub use running::Running;
pub(crate) use running::RunningRoute;
pub(crate) use stop::StopOrder;
pub(crate) use task::run;
