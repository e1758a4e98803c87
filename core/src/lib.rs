//! The core of postrider: the traits that adapters implement, the types that services use, and the runner between them.
//!
//! It knows no broker, reads no environment variable, handles no signal, and takes time and chance from an [`Env`] that a
//! test can replace. Programs use the crate `postrider`, which re-exports this one.

mod address;
mod breaker;
mod broker;
mod bulkhead;
mod capability;
mod chunk;
pub mod codec;
mod delivery;
pub mod duration;
mod env;
mod envelope;
mod error;
mod extract;
mod handler;
mod headers;
mod id;
mod idempotency;
mod inventory;
mod layer;
mod letters;
mod message;
mod outcome;
mod panics;
mod pending;
mod policy;
mod publish;
mod rate;
mod redrive;
mod registry;
mod rising;
mod router;
mod runner;
mod runtime_guard;
mod settle;
mod subscribe;
mod time;

pub use address::{Address, Channel, GroupName, KEY_SLOTS, MAX_NAME, SEPARATOR, key_slot, murmur2};
pub use breaker::{Breaker, BreakerError, BreakerPolicy, BreakerState};
pub use broker::{Adapter, BoxSubscription, Broker, Declare};
pub use bulkhead::{Bulkhead, BulkheadError, BulkheadPolicy};
pub use bytes::Bytes;
pub use capability::{Capabilities, Capability};
pub use chunk::chunked;
pub use delivery::{Delivery, Origin};
pub use env::{BoxFuture, Env, SeededSource, Source, SystemSource, deadline_from};
pub use envelope::{Envelope, EnvelopeBuilder, WireReader, derived_id};
pub use error::{BoxError, Class, Classify, Error, ErrorKind, HandlerError, Result};
pub use extract::{
    Attempt, Batch, DeadLetter, Declaration, FromIncoming, FromRef, Incoming, Meta, Publish, Rejection,
    RouteContext, State, Stop, ViaMessage, ViaParts,
};
pub use handler::{
    Function, FunctionHandler, Handled, Handler, Handling, IntoRoute, Route, RouteInfo, ViaBuilder,
    ViaFunction, ViaHandler, handled,
};
pub use headers::{
    Attribute, HeaderValue, Headers, HeadersMut, MAX_HEADER_BYTES, MAX_HEADER_NAME, MAX_HEADER_VALUE,
    MAX_HEADERS, RESERVED_PREFIXES,
};
pub use id::MessageId;
pub use idempotency::{
    End, Ending, Idempotency, IdempotencyStore, Identity, IdentityKey, MemoryStore, Reserve, Reserved,
};
pub use inventory::{ChannelEntry, Finding, Grade, GroupEntry, Inventory, Scope};
pub use layer::{Layer, Layered, Stack};
pub use letters::{BoxLetters, Failure, Letter, Letters, NoLetters, fit_copy};
pub use message::{DecodeError, EnvelopeContext, IntoEnvelope, Key, Message, ToKey, decode};
pub use outcome::{IntoOutcome, IntoOutputs, Outcome, OutputContext, Reason};
pub use pending::{NewSend, Pending, Room};
pub use policy::{
    Backoff, DeadLetterPolicy, Jitter, OnExpired, OnGap, OnlyIf, RETRY_TIERS, Retry, RouteOptions, Verdict,
    retry_tier,
};
pub use publish::{
    Confirm, Confirmed, Confirms, DrainReport, Outgoing, PublishError, PublishOptions, PublishOrder,
    Publisher, PublisherExt, Receipt, check_address, check_size,
};
pub use rate::{RateLimit, RatePolicy};
pub use redrive::{Redrive, Redriven};
pub use registry::{BrokerUrl, Connector, Host, OptionsError, Registry};
pub use rising::Rising;
pub use router::{DRAIN, Description, RouteDescription, Router};
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use runner::fuzzing;
pub use runner::{Report, RouteHealth, RouteReport, RouteState, Running, ServiceHealth};
pub use settle::{Claim, ClaimId, InFlight, Settle, SettleError, Settlement, Token, Window};
pub use subscribe::{
    Control, Gap, Group, Health, HealthState, Order, Signal, Start, SubscribeOptions, Subscriber,
    Subscription, Suspect,
};
pub use time::{parse_rfc3339, rfc3339};
