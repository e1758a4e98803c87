//! What the command says without a broker: its help, and its errors.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod support;

use support::{Said, bare, run, run_with};

fn said(arguments: &[&str]) -> Said {
    Said::of(bare().args(arguments).output().expect("it runs"))
}

#[test]
fn help_is_as_it_was() {
    let commands: [&[&str]; 12] = [
        &[],
        &["publish"],
        &["tail"],
        &["channels"],
        &["doctor"],
        &["dlq"],
        &["dlq", "list"],
        &["dlq", "show"],
        &["dlq", "redrive"],
        &["dlq", "edit"],
        &["dlq", "purge"],
        &["completions"],
    ];
    let all: Vec<_> = commands
        .iter()
        .map(|words| {
            let line = [words, &["--help"][..]].concat();
            format!("$ postrider {}\n{}", line.join(" "), said(&line).ended(0).out)
        })
        .collect();
    insta::assert_snapshot!(all.join("\n"));
}

#[test]
fn what_is_wrong_is_told_with_what_to_do_next() {
    let memory = run("memory:", &["channels"]);
    let cases = [
        said(&["channels"]),
        said(&["--url", "localhost", "channels"]),
        said(&["--url", "nast://localhost", "channels"]),
        memory,
        said(&["--url", "nats://h?tennant=a", "channels"]),
        said(&["--url", "nats://h", "publish", "a--b", "x"]),
        said(&["--url", "nats://h", "publish", "orders", "--file", "no/such/file"]),
        said(&["--url", "nats://h", "dlq", "redrive", "orders.billing.dlq"]),
        said(&["--url", "nats://h", "dlq", "purge", "orders.billing.dlq", "--all"]),
        said(&["--url", "nats://h", "doctor", "--routes", "no/such/file"]),
        said(&["tail", "orders", "--from", "yesterday"]),
        said(&["dlq", "show", "x", "--reason", "because"]),
        said(&["dlq", "redrive", "x", "--rate", "fast"]),
        said(&["publish", "orders", "--header", "x"]),
    ];
    let all: Vec<_> = cases.into_iter().map(|said| said.ended(2)).map(|said| said.err).collect();
    // tests of the whole workspace compile in the embedded broker as well
    insta::assert_snapshot!(all.join("---\n").replace("`kafka:`, `memory:`, ", "`kafka:`, "));
}

#[test]
fn a_broker_that_is_not_there_is_a_failure_and_its_password_no_secret_told() {
    for url in [
        "nats://ann:s3cr3t@127.0.0.1:1?connect_timeout=2s",
        "amqp://ann:s3cr3t@127.0.0.1:1",
        "kafka://ann:s3cr3t@127.0.0.1:1?connect_timeout=1s",
    ] {
        for arguments in [
            &["channels"][..],
            &["doctor"],
            &["publish", "orders", "x"],
            &["dlq", "list"],
            &["tail", "orders"],
        ] {
            let said = run(url, arguments).ended(1);
            let all = format!("{}{}", said.out, said.err);
            assert!(all.contains("127.0.0.1:1"), "{said:?}");
            assert!(!all.contains("s3cr3t"), "{said:?}");
        }
    }
    let doctor =
        run("nats://ann:s3cr3t@127.0.0.1:1?connect_timeout=2s", &["doctor", "--json"]).ended(1).json();
    assert_eq!(
        (doctor["grade"].as_str(), doctor["findings"][0]["what"].as_str()),
        (Some("failed"), Some("connection"))
    );
}

#[test]
fn completions_are_made_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = said(&["completions", shell]).ended(0).out;
        assert!(script.contains("redrive"), "{shell}");
    }
    said(&["completions", "tcsh"]).ended(2);
    assert!(said(&["--version"]).ended(0).out.starts_with("postrider 0."));
}

#[test]
fn every_command_of_the_book_is_one() {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/src/guide/cli.md");
    let page = std::fs::read_to_string(page).expect("the book has a page of the command line");
    let lines: Vec<_> = page.lines().filter_map(|line| line.strip_prefix("$ postrider ")).collect();
    assert!(lines.len() > 15, "{lines:?}");
    for line in lines {
        let line = line.split(['|', '>']).next().unwrap_or_default();
        // what is quoted stands between every second pair of quotes, and there is one at most
        let words: Vec<_> = line
            .split('\'')
            .enumerate()
            .flat_map(|(n, part)| if n % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
            .collect();
        // asked for help, it has read every word before it
        said(&[&words[..], &["--help"]].concat()).ended(0);
    }
}

#[test]
fn whoever_has_read_enough_may_leave() {
    let child = bare().args(["completions", "bash"]).stdout(std::process::Stdio::piped()).spawn();
    let mut child = child.expect("it starts");
    drop(child.stdout.take());
    assert!(child.wait().expect("it ends").code().is_some_and(|code| code == 0));
}

#[test]
fn nothing_is_read_before_what_is_typed_is_right() {
    let said = run_with("", &["publish", "orders", "--ndjson", "--id", "m-1"], "{}\n").ended(2);
    assert!(said.err.contains("cannot be used with"), "{said:?}");
}
