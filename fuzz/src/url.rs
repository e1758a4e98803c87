//! URLs and options of all adapters: no text ends the program, and no password is shown.

use postrider_core::{BrokerUrl, Result};

use crate::feed::Feed;

/// What must not be seen.
const SECRET: &str = "Tr0ub4dor-x9";
const SCHEMES: [&str; 6] = ["nats", "tls", "kafka", "kafka+ssl", "amqp", "amqps"];

/// Any bytes as a URL, and as the parts of one around a password.
pub(crate) fn target(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        look(text);
    }
    let mut feed = Feed(data);
    let scheme = SCHEMES[usize::from(feed.byte()) % SCHEMES.len()];
    let (user, before, after) = (feed.text(), feed.text(), feed.text());
    let rest = String::from_utf8_lossy(feed.0);
    look(&format!("{scheme}://{user}:{before}{SECRET}{after}@{rest}"));
    // a secret that is an option's value; what ends a value has to be escaped there
    if !before.contains(['&', '?', '#']) {
        for option in ["token", "nkey", "native.sasl.oauthbearer.config"] {
            look(&format!("{scheme}://host/?{option}={before}{SECRET}"));
        }
    }
}

fn look(text: &str) {
    let url = match BrokerUrl::parse(text) {
        Ok(url) => url,
        Err(error) => return hides(&format!("{error} {error:?}")),
    };
    hides(&format!("{url} {url:?}"));
    for host in url.hosts() {
        let _ = host.address(1);
    }
    let adapters: [fn(&BrokerUrl) -> Result<()>; 3] = [
        postrider_nats::fuzzing::config,
        postrider_kafka::fuzzing::config,
        postrider_rabbitmq::fuzzing::config,
    ];
    for config in adapters {
        if let Err(error) = config(&url) {
            hides(&format!("{error} {error:?}"));
        }
    }
}

fn hides(text: &str) {
    assert!(!text.contains(SECRET), "{text}");
}
