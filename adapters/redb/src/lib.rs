//! A durable idempotency store for postrider: one file, one process.
//!
//! ```
//! use postrider_core::{Envelope, Idempotency, RouteOptions, Router};
//! use postrider_redb::RedbStore;
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().join("handled.redb");
//! let store = RedbStore::open(&path)?;
//! let options = RouteOptions::new("orders", "billing").idempotency(Idempotency::auto());
//! let router = Router::new().route(options.handle(async |_: Envelope| {})).idempotency(store);
//! # drop(router);
//! # Ok::<(), postrider_core::Error>(())
//! ```

#![forbid(unsafe_code)]

mod entry;
mod store;
mod writer;

pub use store::RedbStore;
