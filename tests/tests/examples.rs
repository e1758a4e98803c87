//! The examples do what they say, as the programs that a user runs.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::path::PathBuf;
use std::process::{Command, Output};

/// The example's program, which cargo builds together with the workspace's tests.
fn example(name: &str) -> Command {
    let test = std::env::current_exe().expect("the test has a path");
    let folder: PathBuf = test.ancestors().nth(2).expect("it lies in target/PROFILE/deps").join("examples");
    let program = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.exists(),
        "{} isn't built; run `cargo build --examples --all-features`",
        program.display()
    );
    let mut command = Command::new(program);
    command.env_remove("POSTRIDER_URL");
    command
}

fn output(command: &mut Command) -> (Output, String) {
    let output = command.output().expect("it runs");
    let text = String::from_utf8(output.stdout.clone()).expect("it prints UTF-8");
    (output, text)
}

/// The lines that are the same on every broker: group, handled, retried, dead-lettered.
fn summary(text: &str) -> Vec<&str> {
    text.lines().skip_while(|line| *line != "group handled retried dead-lettered").skip(1).collect()
}

/// What the shop's mix comes to for 200 orders: 4 declined cards, 2 panics and 2 unreadable bodies; every 20th order is
/// tried three times.
const OF_200: [&str; 3] = ["billing 194 18 8", "ledger 194 0 0", "shipping 200 0 2"];

const TWO_BROKERS: &str = "dispatch handled 100 dead-lettered 0\ntracking handled 100 dead-lettered 0\npackers handled 100 dead-lettered 0\npacked 100 of 100\n";

/// 500 of 10,000 fail, and come back to the group that failed them.
const REDRIVE: &str = "with the bug: billing handled 9500 dead-lettered 500\nwith the bug: shipping handled 10000 dead-lettered 0\nredriven 500, open 0\nwith the fix: billing handled 500 dead-lettered 0\nwith the fix: shipping handled 0 dead-lettered 0\nback at billing 500 of 500\n";

fn redrive_brings_back(url: &str) {
    let (output, text) = output(example("redrive").env("POSTRIDER_URL", url));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text, REDRIVE);
}

mod memory {
    use super::*;

    #[test]
    fn the_quickstart_publishes_handles_and_settles() {
        let (output, text) = output(&mut example("quickstart"));
        assert!(output.status.success(), "{output:?}");
        // it may be handled before its publisher has printed that it is published
        let mut lines: Vec<_> = text.lines().collect();
        lines[..2].sort_unstable_by_key(|line| !line.starts_with("published"));
        insta::assert_snapshot!(lines.join("\n"), @r"
        published: Receipt { shard: 0, position: 0, duplicate: false }
        handled: o-1 owes 1999 cents
        settled:
        route                       handled   retried dead-lettered given back
        bill (orders → billing)           1         0             0          0
        ");
    }

    #[test]
    fn orders_end_with_the_same_figures_in_every_run() {
        for _ in 0..2 {
            let (output, text) = output(&mut example("orders"));
            assert!(output.status.success(), "{output:?}");
            assert_eq!(summary(&text), OF_200, "{text}");
        }
    }

    #[test]
    fn another_mix_has_other_figures() {
        let (_, text) = output(example("orders").args(["--orders", "400"]));
        assert_eq!(summary(&text), ["billing 388 38 16", "ledger 388 0 0", "shipping 400 0 4"], "{text}");
    }

    #[test]
    fn a_wrong_argument_is_told_with_the_usage() {
        let (output, _) = output(example("orders").args(["--orders", "many"]));
        assert_eq!(output.status.code(), Some(2));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(errors.contains("--orders takes a whole number") && errors.contains("usage:"), "{errors}");
    }

    #[test]
    fn what_a_bug_failed_is_redriven() {
        redrive_brings_back("memory:");
    }

    #[test]
    fn two_embedded_brokers_are_two() {
        let (output, text) = output(&mut example("two_brokers"));
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text, TWO_BROKERS);
    }

    #[test]
    fn an_unknown_scheme_lists_those_compiled_in() {
        let (output, _) = output(example("orders").env("POSTRIDER_URL", "mqtt://h"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && errors.contains("memory"), "{errors}");
    }
}

#[cfg(feature = "nats")]
mod nats {
    use super::*;

    #[test]
    fn orders_end_with_the_same_figures_on_a_nats_server() {
        let url = std::env::var("POSTRIDER_TEST_NATS_URL").expect("POSTRIDER_TEST_NATS_URL names a server");
        for _ in 0..2 {
            let (output, text) = output(example("orders").env("POSTRIDER_URL", &url));
            assert!(output.status.success(), "{output:?}");
            assert_eq!(summary(&text), OF_200, "{text}");
        }
    }

    #[test]
    fn what_a_bug_failed_is_redriven() {
        let url = std::env::var("POSTRIDER_TEST_NATS_URL").expect("POSTRIDER_TEST_NATS_URL names a server");
        redrive_brings_back(&url);
    }
}

#[cfg(feature = "kafka")]
mod kafka {
    use super::*;

    #[test]
    fn orders_end_with_the_same_figures_on_a_kafka_broker() {
        let url = std::env::var("POSTRIDER_TEST_KAFKA_URL").expect("POSTRIDER_TEST_KAFKA_URL names a broker");
        for _ in 0..2 {
            let (output, text) = output(example("orders").env("POSTRIDER_URL", &url));
            assert!(output.status.success(), "{output:?}");
            assert_eq!(summary(&text), OF_200, "{text}");
        }
    }

    #[test]
    fn what_a_bug_failed_is_redriven() {
        let url = std::env::var("POSTRIDER_TEST_KAFKA_URL").expect("POSTRIDER_TEST_KAFKA_URL names a broker");
        redrive_brings_back(&url);
    }
}

#[cfg(feature = "rabbitmq")]
mod rabbitmq {
    use super::*;

    #[test]
    fn orders_end_with_the_same_figures_on_rabbitmq() {
        for variable in ["POSTRIDER_TEST_RABBITMQ_URL", "POSTRIDER_TEST_RABBITMQ4_URL"] {
            let url = std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names a broker"));
            for _ in 0..2 {
                let (output, text) = output(example("orders").env("POSTRIDER_URL", &url));
                assert!(output.status.success(), "{output:?}");
                assert_eq!(summary(&text), OF_200, "{text}");
            }
        }
    }

    #[test]
    fn what_a_bug_failed_is_redriven() {
        for variable in ["POSTRIDER_TEST_RABBITMQ_URL", "POSTRIDER_TEST_RABBITMQ4_URL"] {
            redrive_brings_back(
                &std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names a broker")),
            );
        }
    }

    /// On two brokers at once: it runs where both are tested.
    #[cfg(feature = "kafka")]
    mod kafka {
        use super::*;

        #[test]
        fn events_on_kafka_and_jobs_on_rabbitmq() {
            let url = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} names a broker"));
            let mut example = example("two_brokers");
            example.env("POSTRIDER_EVENTS_URL", url("POSTRIDER_TEST_KAFKA_URL"));
            example.env("POSTRIDER_JOBS_URL", url("POSTRIDER_TEST_RABBITMQ4_URL"));
            let (output, text) = output(&mut example);
            assert!(output.status.success(), "{output:?}");
            assert_eq!(text, TWO_BROKERS);
        }
    }
}
