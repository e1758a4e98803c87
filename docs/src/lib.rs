//! The book and the README, as documentation of this crate: their code is compiled, and run where it needs no server. That no page
//! is left out is tested in `tests/pages.rs`.

#![allow(clippy::doc_markdown, reason = "these are pages of prose")]

#[doc = include_str!("../../README.md")]
pub mod readme {}

#[doc = include_str!("introduction.md")]
pub mod introduction {}

#[doc = include_str!("tutorial/first-handler.md")]
pub mod tutorial_first_handler {}

#[doc = include_str!("tutorial/state.md")]
pub mod tutorial_state {}

#[doc = include_str!("tutorial/failures.md")]
pub mod tutorial_failures {}

#[doc = include_str!("tutorial/outputs.md")]
pub mod tutorial_outputs {}

#[doc = include_str!("tutorial/testing.md")]
pub mod tutorial_testing {}

#[doc = include_str!("tutorial/nats.md")]
pub mod tutorial_nats {}

#[doc = include_str!("guide/handlers.md")]
pub mod guide_handlers {}

#[doc = include_str!("guide/options.md")]
pub mod guide_options {}

#[doc = include_str!("guide/failures.md")]
pub mod guide_failures {}

#[doc = include_str!("guide/dead-letters.md")]
pub mod guide_dead_letters {}

#[doc = include_str!("guide/breaker.md")]
pub mod guide_breaker {}

#[doc = include_str!("guide/idempotency.md")]
pub mod guide_idempotency {}

#[doc = include_str!("guide/order.md")]
pub mod guide_order {}

#[doc = include_str!("guide/lifecycle.md")]
pub mod guide_lifecycle {}

#[doc = include_str!("guide/publishing.md")]
pub mod guide_publishing {}

#[doc = include_str!("guide/messages.md")]
pub mod guide_messages {}

#[doc = include_str!("guide/envelope.md")]
pub mod guide_envelope {}

#[doc = include_str!("guide/cli.md")]
pub mod guide_cli {}

#[doc = include_str!("brokers/memory.md")]
pub mod brokers_memory {}

#[doc = include_str!("brokers/nats.md")]
pub mod brokers_nats {}

#[doc = include_str!("brokers/kafka.md")]
pub mod brokers_kafka {}

#[doc = include_str!("brokers/rabbitmq.md")]
pub mod brokers_rabbitmq {}

#[doc = include_str!("brokers/conformance.md")]
pub mod brokers_conformance {}

#[doc = include_str!("brokers/faults.md")]
pub mod brokers_faults {}

#[doc = include_str!("brokers/performance.md")]
pub mod brokers_performance {}
