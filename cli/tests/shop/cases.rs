//! Publishing, following, listing, examining.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use postrider::{Capability, Publisher};
use serde_json::{Value, json};

use super::{LETTERS, declared, interrupt, router, taken};
use crate::support::{PATIENCE, postrider, run, run_with};

pub(crate) async fn publish(url: &str) {
    let broker = declared(url).await;
    let said = run(
        url,
        &[
            "publish",
            "orders",
            "{\"order_id\":\"o-1\"}",
            "--key",
            "o-1",
            "--type",
            "order.placed",
            "--version",
            "3",
            "--id",
            "m-1",
            "--idempotency-key",
            "i-1",
            "--header",
            "tenant=acme",
            "--header",
            "empty=",
            "--json",
        ],
    )
    .ended(0);
    let answer = said.json();
    assert_eq!(
        (&answer["outcome"], &answer["id"], &answer["channel"]),
        (&json!("confirmed"), &json!("m-1"), &json!("orders"))
    );
    let text = run_with(url, &["publish", "orders", "--id", "m-2"], "plain text").ended(0);
    assert_eq!(text.out, "confirmed m-2\n");
    run(url, &["publish", "orders", "--null", "--key", "o-1", "--id", "m-3"]).ended(0);
    let mut messages = taken(&broker, "billing", 3).await;
    messages.sort_by_key(|message| message.id().to_string());
    let [json, plain, null] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(
        (json.type_name(), json.version(), json.key(), json.idempotency_key()),
        ("order.placed", 3, Some(&b"o-1"[..]), Some("i-1"))
    );
    assert_eq!(
        (json.content_type(), &json.payload()[..]),
        (Some("application/json"), &b"{\"order_id\":\"o-1\"}"[..])
    );
    let header = |name: &str| json.headers().get(name).and_then(|value| value.as_text().map(str::to_owned));
    assert_eq!((header("tenant").as_deref(), header("empty").as_deref()), (Some("acme"), Some("")));
    assert_eq!((plain.content_type(), &plain.payload()[..], plain.key()), (None, &b"plain text"[..], None));
    assert!(null.is_null() && null.key() == Some(b"o-1"));
    let missing = run(url, &["publish", "nowhere", "x", "--deadline", "60s"]).ended(1);
    assert!(missing.err.contains("failed (it is not stored)") && missing.out.is_empty(), "{missing:?}");
    let again = run(url, &["publish", "nowhere", "x", "--deadline", "60s", "--json"]).ended(1).json();
    assert_eq!(again["outcome"], "failed", "nothing was declared by the first: {again}");
}

pub(crate) async fn bulk(url: &str) {
    let broker = declared(url).await;
    let mut lines = String::new();
    for n in 0..1000 {
        let line = match n {
            300 => "{oops".to_owned(),
            600 => "{\"no\":\"key\"}".to_owned(),
            _ => format!("{{\"id\":\"{n}\"}}"),
        };
        writeln!(lines, "{line}").unwrap();
    }
    let arguments = ["publish", "orders", "--ndjson", "--key-from", "id", "--type", "order.placed"];
    let said = run_with(url, &arguments, &lines).ended(1);
    assert_eq!(said.out, "998 of 1000 published to orders: 998 confirmed, 2 failed, 0 unknown\n");
    assert!(
        said.err.contains("line 301 failed: it is not JSON")
            && said.err.contains("line 601 failed: it has no field `id`"),
        "{said:?}"
    );
    assert!(said.err.contains("mend the line and publish it alone"), "{said:?}");
    let messages = taken(&broker, "billing", 998).await;
    assert_eq!(messages.len(), 998);
    assert!(
        messages
            .iter()
            .all(|m| m.content_type() == Some("application/json") && m.type_name() == "order.placed")
    );
    let missing =
        run_with(url, &["publish", "nowhere", "--ndjson", "--json", "--deadline", "60s"], "1\n2\n").ended(1);
    assert_eq!(
        missing.json(),
        json!({"channel": "nowhere", "lines": 2, "confirmed": 0, "failed": 2, "unknown": 0})
    );
}

pub(crate) async fn tail(url: &str) {
    let broker = declared(url).await;
    let lines = ["{\"n\":1}\n"; 5].concat();
    run_with(url, &["publish", "orders", "--ndjson"], &lines).ended(0);
    let earliest = ["tail", "orders", "--from", "earliest", "--limit", "5", "--json"];
    if broker.capabilities().has(Capability::Replay) {
        let mut bodies: Vec<_> =
            run(url, &earliest).ended(0).lines().iter().map(|line| line["body"].to_string()).collect();
        bodies.sort();
        assert_eq!(bodies.len(), 5, "{bodies:?}");
        let recent = run(url, &["tail", "orders", "--from", "1h", "--limit", "5"]).ended(0);
        assert_eq!(recent.out.lines().count(), 5);
    } else {
        let refused = run(url, &earliest).ended(1);
        assert!(refused.err.contains("replay"), "{refused:?}");
    }
    let missing = run(url, &["tail", "nowhere"]).ended(1);
    assert!(
        missing.err.contains("no such channel") && missing.err.contains("next: `postrider channels`"),
        "{missing:?}"
    );
    assert!(run(url, &["publish", "nowhere", "x"]).code == Some(1), "nothing was declared");
    // from now on, until Ctrl-C
    let mut command = postrider(url, &["tail", "orders", "--json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let out = child.stdout.take().expect("it is piped");
    let (sender, read) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let closed = Instant::now() + PATIENCE;
    let line = loop {
        run(url, &["publish", "orders", "live"]).ended(0);
        if let Ok(line) = read.recv_timeout(Duration::from_millis(300)) {
            break line;
        }
        assert!(Instant::now() < closed, "nothing is followed");
    };
    let message: Value = serde_json::from_str(&line).expect("it is JSON");
    assert_eq!(message["body"], "live");
    interrupt(&child);
    assert_eq!(child.wait().expect("it ends").code(), Some(0), "Ctrl-C is how following ends");
    // the groups' places are where they were
    let all = taken(&broker, "billing", 6).await;
    assert_eq!(all.iter().filter(|message| message.payload()[..] != b"live"[..]).count(), 5);
}

pub(crate) async fn channels(url: &str, management: Option<&str>) {
    let broker = declared(url).await;
    let lines = ["{\"n\":\"1\"}\n", "{\"n\":\"2\"}\n"].concat().repeat(4);
    run_with(url, &["publish", "orders", "--ndjson", "--key-from", "n"], &lines).ended(0);
    taken(&broker, "shipping", 8).await;
    let listed: Vec<&str> = management.map_or(vec![], |management| vec!["--management-url", management]);
    let closed = Instant::now() + PATIENCE;
    let found = loop {
        // the management API counts every few seconds
        let found = run(url, &[&["channels", "--json"], &listed[..]].concat()).ended(0).json();
        let lag = |group: &str| {
            let orders = found["channels"].as_array()?.iter().find(|entry| entry["channel"] == "orders")?;
            orders["groups"].as_array()?.iter().find(|entry| entry["group"] == group)?["lag"].as_u64()
        };
        if (lag("billing"), lag("shipping")) == (Some(8), Some(0)) {
            break found;
        }
        assert!(Instant::now() < closed, "{found}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let names: Vec<_> = found["channels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["channel"].as_str().unwrap())
        .collect();
    assert!(names.starts_with(&["orders", LETTERS]) || names.starts_with(&["orders"]), "{names:?}");
    assert!(names.iter().all(|name| name.starts_with("orders")), "other tenants aren't shown: {names:?}");
    let table = run(url, &[&["channels", "--channel", "orders"], &listed[..]].concat()).ended(0).out;
    assert!(table.starts_with("CHANNEL  MESSAGES  GROUP     LAG  MEMBERS  PARTITIONS\norders "), "{table}");
    assert_eq!(table.lines().count(), 3, "{table}");
    run(url, &[&["channels", "--channel", "nowhere"], &listed[..]].concat()).ended(1);
    if management.is_some() {
        let named = run(
            url,
            &[
                "channels",
                "--channel",
                "orders",
                "--group",
                "billing",
                "--group",
                "nobody",
                "--json",
                "--management-url",
                "",
            ],
        );
        assert_ne!(named.code, Some(0), "an API that is named has to answer: {named:?}");
        let refused = run(url, &["channels", "--management-url", "http://127.0.0.1:1"]).ended(1);
        assert!(refused.err.contains("doesn't answer"), "{refused:?}");
    }
    broker.close(broker.env().now() + Duration::from_secs(5)).await;
}

pub(crate) async fn doctor(url: &str, management: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("routes.json");
    let description = router().describe().expect("the routes are right");
    std::fs::write(&file, serde_json::to_string(&description).unwrap()).unwrap();
    let file = file.to_str().unwrap();
    let listed: Vec<&str> = management.map_or(vec![], |management| vec!["--management-url", management]);
    let plain = run(url, &[&["doctor"], &listed[..]].concat()).ended(0);
    assert!(plain.out.starts_with("ok       connection: ") && !plain.out.contains("failed"), "{plain:?}");
    assert!(!plain.out.contains("guest:guest"), "{plain:?}");
    let before = run(url, &[&["doctor", "--routes", file], &listed[..]].concat()).ended(1).out;
    assert!(before.contains("failed   route bill: there is no channel `orders`"), "{before}");
    assert!(before.contains("next: start the router once"), "{before}");
    let broker = declared(url).await;
    // RabbitMQ puts what it gives up itself there, so the group brings its dead letters along
    let all = broker.name() == "rabbitmq";
    let middle = run(url, &["doctor", "--routes", file]).ended(i32::from(!all)).out;
    let lacks = middle.contains("failed   route ship: there is no dead-letter channel `orders.shipping.dlq`");
    assert_ne!(lacks, all, "{middle}");
    let service = router().start(&broker).await.expect("it starts");
    let after = run(url, &[&["doctor", "--json", "--routes", file], &listed[..]].concat()).ended(0).json();
    let routes: Vec<_> = after["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|f| f["what"].as_str().unwrap().starts_with("route "))
        .collect();
    assert_eq!(routes.len(), 2, "{after}");
    assert!(routes.iter().all(|finding| finding["grade"] == "ok"), "{after}");
    service.stop(Duration::from_secs(10)).await.expect("it stops");
    let other = serde_json::to_string(&description).unwrap().replace("\"partitions\":2", "\"partitions\":64");
    std::fs::write(file, other).unwrap();
    let differs = run(url, &["doctor", "--routes", file]).ended(1).out;
    assert!(differs.contains("the route asks for 64"), "{differs}");
}
