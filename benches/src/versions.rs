//! Which clients and brokers are measured.

use std::process::Command;

use crate::case::Kind;

/// Where versions of clients stand.
const LOCK: &str = include_str!("../../Cargo.lock");

/// The versions of what takes part in a bench on these brokers. A broker's is known where `cargo xtask bench` has brought it up.
pub(crate) fn versions(kinds: &[Kind]) -> Vec<String> {
    let mut all = vec![locked("postrider"), locked("tokio")];
    let status = status().unwrap_or_default();
    for kind in kinds {
        match kind {
            Kind::Memory => {}
            Kind::Nats => all.push(locked("async-nats")),
            Kind::Kafka => {
                all.push(locked("rdkafka"));
                all.push(Some(format!("librdkafka {}", rdkafka::util::get_rdkafka_version().1)));
            }
            Kind::Rabbitmq => all.push(locked("lapin")),
        }
        let url = kind.variable().and_then(|variable| std::env::var(variable).ok());
        all.push(
            url.and_then(|url| version_at(&status, &url))
                .map(|version| format!("{} server {version}", kind.name())),
        );
    }
    all.into_iter().flatten().collect()
}

fn locked(name: &str) -> Option<String> {
    let (_, rest) = LOCK.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    Some(format!("{name} {}", rest.split('"').next()?))
}

/// What the brokers' script says of them, a line each: `NAME STATE PID MEMORY VERSION URL`, the memory with its unit.
fn status() -> Option<String> {
    let script = std::env::var_os("POSTRIDER_TEST_BROKERS_SCRIPT")?;
    let output = Command::new("bash").arg(script).arg("status").output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The version of the broker at that address: of one kind there may be several.
fn version_at<'a>(status: &'a str, url: &str) -> Option<&'a str> {
    status.lines().find_map(|line| {
        let mut words = line.split_whitespace().rev();
        if words.next()? == url { words.next() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_a_version() {
        // postrider, tokio, async-nats, rdkafka with its library, lapin
        assert!(versions(&Kind::ALL).len() >= 6, "{:?}", versions(&Kind::ALL));
    }

    #[test]
    fn a_broker_has_the_version_of_what_is_at_its_address() {
        let status = "NAME STATE PID MEMORY VERSION URL\n\
            rabbitmq ready 7 90 MB 3.10.8 amqp://guest:guest@127.0.0.1:5672/%2f\n\
            rabbitmq4 ready 8 110 MB 4.0.5 amqp://guest:guest@127.0.0.1:5674/%2f\n";
        assert_eq!(version_at(status, "amqp://guest:guest@127.0.0.1:5674/%2f"), Some("4.0.5"));
        assert_eq!(version_at(status, "amqp://guest:guest@127.0.0.1:5673/%2f"), None);
    }
}
