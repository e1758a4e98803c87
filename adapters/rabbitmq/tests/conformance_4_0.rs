//! The conformance suite on a real RabbitMQ 4.0: `POSTRIDER_TEST_RABBITMQ4_URL` names it (`cargo xtask test` sets it).

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use support::Version;

postrider_conformance::conformance!(
    Version::V4_0,
    ignore = "needs a RabbitMQ broker: cargo xtask test --only rabbitmq"
);
