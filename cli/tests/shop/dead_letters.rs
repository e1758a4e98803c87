//! Dead letters: listed, shown, redriven, edited, purged.

use std::process::Stdio;

use serde_json::json;

use super::{LETTERS, first, ids, interrupt, orders, taken, with_letters};
use crate::support::{Said, postrider, run, run_typing, run_with};

/// How many letters are open.
fn open(url: &str) -> u64 {
    let shown = run(url, &["dlq", "show", LETTERS, "--json"]).ended(0);
    shown.lines().len() as u64
}

pub(crate) async fn list_and_show(url: &str, management: Option<&str>) {
    let _broker = with_letters(url, 12).await;
    let listed: Vec<&str> = management.map_or(vec![], |management| vec!["--management-url", management]);
    let list =
        run(url, &[&["dlq", "list", "--channel", LETTERS, "--json"], &listed[..]].concat()).ended(0).json();
    let entry = &list["dead_letters"][0];
    assert_eq!((&entry["channel"], &entry["open"]), (&json!(LETTERS), &json!(12)));
    assert_eq!((&entry["from_channel"], &entry["from_group"]), (&json!("orders"), &json!("billing")));
    let table = run(url, &[&["dlq", "list"], &listed[..]].concat()).ended(0).out;
    assert!(
        table.lines().any(|line| line.starts_with(LETTERS)
            && line.contains("  12  ")
            && line.ends_with("orders → billing")),
        "{table}"
    );
    let shown = run(url, &["dlq", "show", LETTERS, "--json"]).ended(0).lines();
    assert_eq!(shown.len(), 12);
    let letter = shown.iter().find(|letter| letter["message"]["id"] == "o-3").expect("it is there");
    assert_eq!(
        (&letter["reason"], &letter["attempts"], &letter["handler"]),
        (&json!("rejected"), &json!(1), &json!("bill"))
    );
    assert_eq!(
        (&letter["channel"], &letter["group"], &letter["redrives"]),
        (&json!("orders"), &json!("billing"), &json!(0))
    );
    assert!(
        letter["error"].as_str().is_some_and(|error| error.contains("the card was declined")),
        "{letter}"
    );
    assert_eq!(
        (&letter["message"]["body"], &letter["message"]["key"]),
        (&json!("{\"number\":3}"), &json!("k-3"))
    );
    for (filters, count) in [
        (&["--key", "k-3"][..], 1),
        (&["--id", "o-7"], 1),
        (&["--reason", "rejected"], 12),
        (&["--reason", "exhausted"], 0),
        (&["--error", "declined"], 12),
        (&["--error", "accepted"], 0),
        (&["--since", "1h"], 12),
        (&["--until", "1h"], 0),
        (&["--limit", "5"], 5),
    ] {
        let shown = run(url, &[&["dlq", "show", LETTERS, "--json"], filters].concat()).ended(0).lines();
        assert_eq!(shown.len(), count, "{filters:?}");
    }
    let table = run(url, &["dlq", "show", LETTERS, "--limit", "5"]).ended(0);
    assert!(
        table.out.starts_with("FAILED AT")
            && table.out.lines().count() == 6
            && table.err.contains("there are more"),
        "{table:?}"
    );
    let long = run(url, &["dlq", "show", LETTERS, "--id", "o-3", "--long"]).ended(0).out;
    assert!(long.contains("  reason: rejected\n") && long.contains("  body: {\"number\":3}\n"), "{long}");
    assert_eq!(open(url), 12, "looking closes nothing");
    let missing = run(url, &["dlq", "show", "nothing.at.dlq"]).ended(1);
    assert!(missing.err.contains("next: "), "{missing:?}");
}

pub(crate) async fn redrive(url: &str) {
    let broker = with_letters(url, 500).await;
    let pretended = run(url, &["dlq", "redrive", LETTERS, "--all", "--dry-run"]).ended(0);
    assert_eq!(pretended.out, "500 would be redriven (orders/billing 500)\n");
    assert_eq!(open(url), 500, "pretending closes nothing");
    let some =
        run(url, &["dlq", "redrive", LETTERS, "--key", "k-3", "--limit", "2", "--json"]).ended(0).json();
    assert_eq!(
        (&some["chosen"], &some["redriven"], &some["to"]),
        (&json!(2), &json!(2), &json!({"orders/billing": 2}))
    );
    let all = run(url, &["dlq", "redrive", LETTERS, "--all"]).ended(0);
    assert_eq!(all.out, "498 of 498 redriven (orders/billing 498)\n");
    let none = run(url, &["dlq", "redrive", LETTERS, "--all"]).ended(0);
    assert_eq!(none.out, "0 of 0 redriven\n");
    let messages = taken(&broker, "billing", 500).await;
    assert_eq!(ids(&messages), orders(500), "each once");
    let third = messages.iter().find(|message| message.id().to_string() == "o-3").expect("it is there");
    assert_eq!(
        (third.key(), third.type_name(), &third.payload()[..]),
        (Some(&b"k-3"[..]), "order.placed", &b"{\"number\":3}"[..])
    );
    assert_eq!(taken(&broker, "shipping", 0).await.len(), 0, "another group gets none");
}

pub(crate) async fn stopped(url: &str) {
    let broker = with_letters(url, 300).await;
    // all of them would take a minute: the interrupt comes long before that, also on a slow machine
    let mut command = postrider(url, &["dlq", "redrive", LETTERS, "--all", "--rate", "5/s", "--json"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    // it is in the middle of it once the first ones have come
    let some = first(&broker, "billing", 5).await;
    interrupt(&child);
    let stopped = Said::of(child.wait_with_output().expect("it ends"));
    let (mut messages, summary) = (some, stopped.json());
    assert_eq!(stopped.code, Some(130), "it was stopped in the middle: {stopped:?}");
    assert_eq!(summary["interrupted"], true, "{stopped:?}");
    assert!(stopped.err.contains("nothing is lost"), "{stopped:?}");
    let done = summary["redriven"].as_u64().expect("it is told");
    assert_eq!(open(url), 300 - done, "what isn't redriven is open");
    let second = run(url, &["dlq", "redrive", LETTERS, "--all", "--json"]).ended(0).json();
    assert_eq!(second["redriven"], 300 - done);
    messages.extend(taken(&broker, "billing", 300 - messages.len()).await);
    assert_eq!(ids(&messages), orders(300), "none is lost, none is there twice");
}

pub(crate) async fn edit(url: &str) {
    let broker = with_letters(url, 3).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("order.json");
    std::fs::write(&file, "{\"number\":1,\"card\":\"new\"}").unwrap();
    let file = file.to_str().unwrap();
    let place =
        run(url, &["dlq", "show", LETTERS, "--id", "o-1", "--json"]).ended(0).lines()[0]["place"].clone();
    let said = run(url, &["dlq", "edit", LETTERS, "--id", "o-1", "--file", file, "--json"]).ended(0).json();
    assert_eq!(said, json!({"channel": LETTERS, "id": "o-1", "edited_from": place}));
    let shown = run(url, &["dlq", "show", LETTERS, "--id", "o-1", "--json"]).ended(0).lines();
    assert_eq!((shown.len(), &shown[0]["edited_from"], &shown[0]["reason"]), (1, &place, &json!("rejected")));
    assert_eq!(shown[0]["message"]["body"], "{\"number\":1,\"card\":\"new\"}");
    let wrong = run_with(url, &["dlq", "edit", LETTERS, "--id", "o-2"], "{oops").ended(0);
    assert!(wrong.err.contains("the new body isn't"), "{wrong:?}");
    let nobody = run_with(url, &["dlq", "edit", LETTERS, "--id", "o-9"], "{}").ended(1);
    assert!(nobody.err.contains("no open letter fits"), "{nobody:?}");
    assert_eq!(
        run(url, &["dlq", "redrive", LETTERS, "--id", "o-1"]).ended(0).out,
        "1 of 1 redriven (orders/billing 1)\n"
    );
    let messages = taken(&broker, "billing", 1).await;
    assert_eq!((messages.len(), &messages[0].payload()[..]), (1, &b"{\"number\":1,\"card\":\"new\"}"[..]));
}

pub(crate) async fn purge(url: &str) {
    let broker = with_letters(url, 20).await;
    let refused = run(url, &["dlq", "purge", LETTERS, "--all"]).ended(2);
    assert!(refused.err.contains("--yes"), "{refused:?}");
    assert_eq!(open(url), 20);
    let no = run_typing(url, &["dlq", "purge", LETTERS, "--all"], "no\n").ended(1);
    assert!(no.err.contains(&format!("Close 20 of 20 open letters of {LETTERS} for good?")), "{no:?}");
    assert_eq!((no.out, open(url)), (format!("0 of 20 purged from {LETTERS}\n"), 20));
    run_typing(url, &["dlq", "purge", LETTERS, "--id", "o-5"], "yes\n").ended(0);
    assert_eq!(open(url), 19);
    let one = run(url, &["dlq", "purge", LETTERS, "--id", "o-4", "--yes"]).ended(0);
    assert_eq!(one.out, format!("1 of 1 purged from {LETTERS}\n"));
    assert_eq!(open(url), 18);
    let rest = run(url, &["dlq", "purge", LETTERS, "--all", "--yes", "--json"]).ended(0).json();
    assert_eq!(rest, json!({"channel": LETTERS, "chosen": 18, "purged": 18}));
    assert_eq!(open(url), 0);
    assert_eq!(run(url, &["dlq", "redrive", LETTERS, "--all"]).ended(0).out, "0 of 0 redriven\n");
    assert_eq!(taken(&broker, "billing", 0).await.len(), 0, "nothing comes back");
}
