//! The examples do what they say, as the programs that a user runs.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

use std::path::PathBuf;
use std::process::Command;

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

/// Runs it; answers what it printed. Each line that it logs, at WARN or above, must be one of the expected.
fn run(command: &mut Command, expected: &[&str]) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let errors = String::from_utf8(output.stderr).expect("it logs UTF-8");
    let unexpected: Vec<_> =
        errors.lines().filter(|line| !expected.iter().any(|part| line.contains(part))).collect();
    assert!(unexpected.is_empty(), "in normal operation nothing else is logged: {unexpected:#?}");
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}

/// What a wrong use prints, and its exit code.
fn fails(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().expect("it runs");
    assert!(!output.status.success(), "{output:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
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

/// The example's service logs each message that it dead-letters, and nothing else.
const DEAD_LETTERED: &str = "WARN postrider::dead_letter: message dead-lettered";
/// The shop's handlers panic on purpose, and the example's hook prints where.
const PANICKED: [&str; 2] = ["panicked at examples/orders/shop.rs", "no rate for order"];

fn orders_come_to_the_same_figures(url: &str) {
    for _ in 0..2 {
        let expected = [DEAD_LETTERED, PANICKED[0], PANICKED[1]];
        let text = run(example("orders").env("POSTRIDER_URL", url), &expected);
        assert_eq!(summary(&text), OF_200, "{text}");
    }
}

fn redrive_brings_back(url: &str) {
    let text = run(example("redrive").env("POSTRIDER_URL", url), &[DEAD_LETTERED]);
    assert_eq!(text, REDRIVE);
}

fn two_brokers_work_together(events: &str, jobs: &str) {
    let mut example = example("two_brokers");
    example.env("POSTRIDER_EVENTS_URL", events).env("POSTRIDER_JOBS_URL", jobs);
    assert_eq!(run(&mut example, &[]), TWO_BROKERS);
}

/// The URL that a variable has.
#[cfg(any(feature = "nats", feature = "kafka", feature = "rabbitmq"))]
fn url(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} names a broker"))
}

mod memory {
    use super::*;

    #[test]
    fn the_quickstart_publishes_handles_and_settles() {
        // it logs to nobody, so only a panic could show
        let text = run(&mut example("quickstart"), &[]);
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
        orders_come_to_the_same_figures("memory:");
    }

    #[test]
    fn another_mix_has_other_figures() {
        let expected = [DEAD_LETTERED, PANICKED[0], PANICKED[1]];
        let text = run(example("orders").args(["--orders", "400"]), &expected);
        assert_eq!(summary(&text), ["billing 388 38 16", "ledger 388 0 0", "shipping 400 0 4"], "{text}");
    }

    #[test]
    fn a_wrong_argument_is_told_with_the_usage() {
        let (code, errors) = fails(example("orders").args(["--orders", "many"]));
        assert_eq!(code, Some(2));
        assert!(errors.contains("--orders takes a whole number") && errors.contains("usage:"), "{errors}");
    }

    #[test]
    fn what_a_bug_failed_is_redriven() {
        redrive_brings_back("memory:");
    }

    #[test]
    fn two_embedded_brokers_are_two() {
        two_brokers_work_together("memory:", "memory:");
    }

    #[test]
    fn an_unknown_scheme_lists_those_compiled_in() {
        let (_, errors) = fails(example("orders").env("POSTRIDER_URL", "mqtt://h"));
        assert!(errors.contains("memory"), "{errors}");
    }
}

/// Each example on the brokers that these variables name.
#[cfg(any(feature = "nats", feature = "kafka", feature = "rabbitmq"))]
macro_rules! each_example {
    ($reason:literal, $($variable:literal),+) => {
        use super::*;

        #[test]
        #[ignore = $reason]
        fn orders_end_with_the_same_figures() {
            for variable in [$($variable),+] {
                orders_come_to_the_same_figures(&url(variable));
            }
        }

        #[test]
        #[ignore = $reason]
        fn what_a_bug_failed_is_redriven() {
            for variable in [$($variable),+] {
                redrive_brings_back(&url(variable));
            }
        }

        #[test]
        #[ignore = $reason]
        fn two_applications_share_one_broker() {
            for variable in [$($variable),+] {
                two_brokers_work_together(&url(variable), &url(variable));
            }
        }
    };
}

#[cfg(feature = "nats")]
mod nats {
    each_example!("needs a NATS server: cargo xtask test --only nats", "POSTRIDER_TEST_NATS_URL");
}

#[cfg(feature = "kafka")]
mod kafka {
    each_example!("needs a Kafka broker: cargo xtask test --only kafka", "POSTRIDER_TEST_KAFKA_URL");
}

#[cfg(feature = "rabbitmq")]
mod rabbitmq {
    each_example!(
        "needs a RabbitMQ broker: cargo xtask test --only rabbitmq",
        "POSTRIDER_TEST_RABBITMQ_URL",
        "POSTRIDER_TEST_RABBITMQ4_URL"
    );

    /// On two brokers at once: it runs where both are tested.
    #[cfg(feature = "kafka")]
    mod kafka {
        use super::*;

        #[test]
        #[ignore = "needs Kafka and RabbitMQ: cargo xtask test --only kafka --only rabbitmq"]
        fn events_on_kafka_and_jobs_on_rabbitmq() {
            two_brokers_work_together(&url("POSTRIDER_TEST_KAFKA_URL"), &url("POSTRIDER_TEST_RABBITMQ4_URL"));
        }
    }
}
