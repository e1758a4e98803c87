//! The embedded broker of postrider: `memory:`, for programs that need no server and for tests that need none either.
//!
//! It keeps the promises of every other adapter but one: its messages live as long as the process. It is bounded, counts
//! deliveries, waits on the environment's clock (so tokio's paused time works), and misbehaves on request: see [`FaultPlan`].
//!
//! ```
//! use postrider_core::{Broker, PublisherExt, Envelope, Bytes};
//! use postrider_memory::MemoryBroker;
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> postrider_core::Result<()> {
//! let broker = Broker::new(MemoryBroker::new());
//! broker.declare("orders").await?;
//! let receipt = broker.publish("orders", Envelope::builder(Bytes::from_static(b"{}"))).await?;
//! assert_eq!(receipt.position, 0);
//! # Ok(()) }
//! ```

mod addressed;
mod broker;
mod channel;
mod config;
mod connector;
mod faults;
mod group;
mod inventory;
mod letters;
mod log;
mod publisher;
mod room;
mod settle;
mod subscriber;

pub use broker::MemoryBroker;
pub use config::MemoryConfig;
pub use connector::MemoryConnector;
pub use faults::FaultPlan;
pub use letters::MemoryLetters;
pub use subscriber::MemorySubscription;
