//! Which clients and brokers are measured.

use std::process::Command;

use crate::case::Kind;

/// Where versions of clients stand.
const LOCK: &str = include_str!("../../Cargo.lock");

/// The versions of what takes part in a bench on these brokers. A broker's is known where `cargo xtask bench` has brought it up.
pub(crate) fn versions(kinds: &[Kind]) -> Vec<String> {
    let mut all = vec![locked("postrider"), locked("tokio")];
    let brokers = brokers().unwrap_or_default();
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
        let found = brokers.iter().find(|(name, _)| name == kind.name());
        all.push(found.map(|(name, version)| format!("{name} server {version}")));
    }
    all.into_iter().flatten().collect()
}

fn locked(name: &str) -> Option<String> {
    let (_, rest) = LOCK.split_once(&format!("name = \"{name}\"\nversion = \""))?;
    Some(format!("{name} {}", rest.split('"').next()?))
}

/// Name and version of each, as the brokers' script says: `NAME STATE PID MEMORY UNIT VERSION URL`.
fn brokers() -> Option<Vec<(String, String)>> {
    let script = std::env::var_os("POSTRIDER_TEST_BROKERS_SCRIPT")?;
    let output = Command::new("bash").arg(script).arg("status").output().ok()?;
    let read = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let at = words.len().checked_sub(2)?;
        Some((words.first()?.to_string(), words.get(at)?.to_string()))
    };
    Some(String::from_utf8_lossy(&output.stdout).lines().skip(1).filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_a_version() {
        // postrider, tokio, async-nats, rdkafka with its library, lapin
        assert!(versions(&Kind::ALL).len() >= 6, "{:?}", versions(&Kind::ALL));
    }
}
