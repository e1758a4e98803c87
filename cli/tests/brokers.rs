//! The built command on real brokers: each case on each of them.

#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic, reason = "a test says what it expects")]

mod shop;
mod support;

/// One test for each case. `$listed` are the arguments by which the broker can be listed.
macro_rules! on_a_broker {
    ($reason:literal, $variable:literal, $management:expr) => {
        use crate::shop::{cases, dead_letters};
        use crate::support::url;

        fn management() -> Option<String> {
            let variable: Option<&str> = $management;
            variable.map(|name| std::env::var(name).unwrap_or_else(|_| panic!("{name} names the API")))
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn one_message_is_published_and_a_missing_channel_is_told() {
            cases::publish(&url($variable)).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn lines_are_published_and_bad_ones_told() {
            cases::bulk(&url($variable)).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn a_channel_is_followed_until_ctrl_c() {
            cases::tail(&url($variable)).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn channels_and_groups_are_listed() {
            cases::channels(&url($variable), management().as_deref()).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn the_doctor_finds_what_routes_lack() {
            cases::doctor(&url($variable), management().as_deref()).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn dead_letters_are_listed_and_shown() {
            dead_letters::list_and_show(&url($variable), management().as_deref()).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn redriven_letters_reach_their_group_alone() {
            dead_letters::redrive(&url($variable)).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn a_redrive_that_is_stopped_goes_on_and_loses_nothing() {
            dead_letters::stopped(&url($variable)).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn an_edited_letter_comes_with_its_new_body() {
            dead_letters::edit(&url($variable)).await;
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = $reason]
        async fn what_is_purged_is_closed() {
            dead_letters::purge(&url($variable)).await;
        }
    };
}

#[cfg(feature = "nats")]
mod nats {
    on_a_broker!("needs a NATS server: cargo xtask test --only nats", "POSTRIDER_TEST_NATS_URL", None);
}

#[cfg(feature = "kafka")]
mod kafka {
    on_a_broker!("needs a Kafka broker: cargo xtask test --only kafka", "POSTRIDER_TEST_KAFKA_URL", None);
}

#[cfg(feature = "rabbitmq")]
mod rabbitmq {
    mod version_3 {
        on_a_broker!(
            "needs a RabbitMQ broker: cargo xtask test --only rabbitmq",
            "POSTRIDER_TEST_RABBITMQ_URL",
            Some("POSTRIDER_TEST_RABBITMQ_MANAGEMENT_URL")
        );
    }

    mod version_4 {
        on_a_broker!(
            "needs a RabbitMQ broker: cargo xtask test --only rabbitmq",
            "POSTRIDER_TEST_RABBITMQ4_URL",
            Some("POSTRIDER_TEST_RABBITMQ4_MANAGEMENT_URL")
        );
    }
}
