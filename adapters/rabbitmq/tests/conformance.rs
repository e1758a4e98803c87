//! The conformance suite on a real RabbitMQ 3.10: `POSTRIDER_TEST_RABBITMQ_URL` names it (`cargo xtask test` sets it). Cases that
//! kill, pause or cut off the broker have one of their own, started by the project's script.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use support::Version;

postrider_conformance::conformance!(
    Version::V3_10,
    ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"
);
