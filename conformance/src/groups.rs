//! The cases, a file a group.

pub mod failure;
pub mod faults;
pub mod idempotency;
pub mod inventory;
pub mod letters;
pub mod lifecycle;
pub mod order;
pub mod outputs;
pub mod publish;
pub mod receive;
pub mod redrive;
pub(crate) mod refusals;
pub mod retry;
pub mod settle;

pub use postrider_core::Capability;
