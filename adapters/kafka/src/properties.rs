//! librdkafka's own properties: what we set, what users may set, and what they may not because a promise rests on it.

use std::fmt::Write as _;
use std::time::Duration;

use postrider_core::{BrokerUrl, Error, ErrorKind, Result, Window};
use rdkafka::ClientConfig;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::config::{GroupProtocol, KafkaConfig, SaslMechanism};

/// What goes before the name of a property in a URL.
const NATIVE: &str = "native.";

/// Properties that users can't set, and what rests on them.
const OURS: [(&str, &str); 21] = [
    ("acks", "a confirm means that every replica in sync has the message"),
    ("request.required.acks", "a confirm means that every replica in sync has the message"),
    ("enable.idempotence", "the client's own retries double nothing and keep the order"),
    ("max.in.flight", "the client's own retries keep the order"),
    ("max.in.flight.requests.per.connection", "the client's own retries keep the order"),
    ("partitioner", "every publisher must agree on the place of a key"),
    ("message.timeout.ms", "it is the option `send_deadline`"),
    ("delivery.timeout.ms", "it is the option `send_deadline`"),
    ("transactional.id", "this adapter has no transactions"),
    ("enable.auto.commit", "a message is acknowledged when it is settled, not when it is read"),
    ("enable.auto.offset.store", "a message is acknowledged when it is settled, not when it is read"),
    ("auto.offset.reset", "a jump of the place would pass unseen; use the subscription's `start`"),
    ("isolation.level", "messages of a transaction that was undone must not be seen"),
    ("partition.assignment.strategy", "partitions are handed over cooperatively"),
    ("group.protocol", "it is the option `group_protocol`"),
    ("group.id", "it follows from the names of channel and group"),
    ("session.timeout.ms", "it is the option `claim_timeout`"),
    ("bootstrap.servers", "it is the URL's hosts"),
    ("metadata.broker.list", "it is the URL's hosts"),
    ("sasl.username", "it is the URL's user"),
    ("sasl.password", "it is the URL's password, which is never shown"),
];

/// Takes the properties of librdkafka out of a URL's options.
pub(crate) fn split(url: &BrokerUrl) -> Result<(BrokerUrl, Vec<(String, String)>)> {
    let Pairs(pairs) = url.options()?;
    let (native, own): (Vec<_>, Vec<_>) = pairs.into_iter().partition(|(name, _)| name.starts_with(NATIVE));
    let mut text = format!("{}:?", url.scheme());
    for (name, value) in own {
        // the same reader as every adapter's, so that mistakes are told in the same words
        let _ = write!(text, "{}={}&", escape(&name), escape(&value));
    }
    let native = native.into_iter().map(|(name, value)| (name[NATIVE.len()..].to_owned(), value)).collect();
    Ok((BrokerUrl::parse(&text)?, native))
}

fn escape(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// All options, whatever they are called.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Pairs;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("options")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(All)
    }
}

/// Refuses the properties on which a promise rests.
pub(crate) fn check(native: &[(String, String)]) -> Result<()> {
    for (name, _) in native {
        if let Some((name, why)) = OURS.iter().find(|(ours, _)| ours == name) {
            let message = format!("the property can't be set: {why}");
            return Err(Error::config("connect", message).with("property", name));
        }
    }
    Ok(())
}

/// The longest time for setting up a connection to one broker.
const SETUP: Duration = Duration::from_secs(5);

/// What every client has in common.
pub(crate) fn common(url: &BrokerUrl, config: &KafkaConfig) -> Result<ClientConfig> {
    let addresses: Vec<_> = url.hosts().iter().map(|host| host.address(9092)).collect();
    if addresses.is_empty() {
        return Err(Error::config("connect", "the URL names no broker; write `kafka://host:9092`"));
    }
    // each broker has its share, so that a silent one leaves time for the others
    let brokers = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    let share = millis((config.connect_timeout / brokers).clamp(Duration::from_secs(1), SETUP));
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", addresses.join(","))
        .set("client.id", "postrider")
        .set("socket.keepalive.enable", "true")
        .set("socket.nagle.disable", "true")
        // a connection on which nothing is answered for this long is given up
        .set("socket.timeout.ms", "10000")
        .set("socket.connection.setup.timeout.ms", &share)
        .set("api.version.request.timeout.ms", &share)
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", "60000")
        .set("topic.metadata.refresh.fast.interval.ms", "100")
        .set("log.connection.close", "false");
    secure(&mut client, url, config)?;
    Ok(client)
}

fn secure(client: &mut ClientConfig, url: &BrokerUrl, config: &KafkaConfig) -> Result<()> {
    let tls = url.scheme() == "kafka+ssl" || config.tls_ca.is_some() || config.tls_cert.is_some();
    let scram = url.user().is_some() && config.sasl_mechanism != SaslMechanism::Plain;
    if (tls || scram) && !cfg!(feature = "tls") {
        let message = "TLS and SCRAM are not compiled in; add the feature `tls` of postrider-kafka";
        return Err(Error::new(ErrorKind::Unsupported, "connect", message));
    }
    let sasl = url.user().is_some();
    client.set(
        "security.protocol",
        match (sasl, tls) {
            (false, false) => "plaintext",
            (false, true) => "ssl",
            (true, false) => "sasl_plaintext",
            (true, true) => "sasl_ssl",
        },
    );
    if let Some(user) = url.user() {
        let mechanism = match config.sasl_mechanism {
            SaslMechanism::Plain => "PLAIN",
            SaslMechanism::ScramSha256 => "SCRAM-SHA-256",
            SaslMechanism::ScramSha512 => "SCRAM-SHA-512",
        };
        client.set("sasl.mechanisms", mechanism);
        client.set("sasl.username", user).set("sasl.password", url.password().unwrap_or_default());
    }
    for (name, path) in [
        ("ssl.ca.location", &config.tls_ca),
        ("ssl.certificate.location", &config.tls_cert),
        ("ssl.key.location", &config.tls_key),
    ] {
        if let Some(path) = path {
            client.set(name, path.to_string_lossy());
        }
    }
    Ok(())
}

/// What the user asked for goes last.
pub(crate) fn native(client: &mut ClientConfig, config: &KafkaConfig) {
    for (name, value) in &config.native {
        client.set(name, value);
    }
}

/// The largest record that the client takes, in bytes. At least what a broker takes by its default (`message.max.bytes`), so that a
/// copy goes of whatever was read.
pub(crate) fn largest_record(config: &KafkaConfig, header_room: usize) -> usize {
    let mut asked = config.native.iter().rev().filter(|(name, _)| name == "message.max.bytes");
    asked
        .next()
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or_else(|| (config.max_payload + header_room + 4096).max(1_048_588))
}

/// What publishing needs on top.
pub(crate) fn producer(common: &ClientConfig, config: &KafkaConfig, header_room: usize) -> ClientConfig {
    let mut client = common.clone();
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .set("message.timeout.ms", millis(config.send_deadline))
        .set("request.timeout.ms", "10000")
        .set("retry.backoff.ms", "50")
        .set("retry.backoff.max.ms", "500")
        .set("message.max.bytes", largest_record(config, header_room).to_string())
        // our own bound is the one that holds
        .set("queue.buffering.max.messages", config.max_pending.saturating_mul(2).max(100_000).to_string())
        .set("queue.buffering.max.kbytes", "2097151")
        .set("topic.metadata.propagation.max.ms", "1000")
        .set("statistics.interval.ms", "250");
    native(&mut client, config);
    client
}

/// What a member of a group needs on top.
pub(crate) fn consumer(
    common: &ClientConfig,
    config: &KafkaConfig,
    group: &str,
    claim_timeout: Duration,
    window: Window,
) -> ClientConfig {
    let mut client = common.clone();
    let twice = |time: Duration| time.saturating_mul(2);
    let poll_interval = Duration::from_mins(5).max(twice(claim_timeout)).max(twice(config.release_timeout));
    client
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("check.crcs", "true")
        .set("allow.auto.create.topics", "false")
        .set("max.poll.interval.ms", millis(poll_interval))
        .set("fetch.error.backoff.ms", "100")
        .set("fetch.queue.backoff.ms", "10")
        // there is one request at a time to a broker, and it leaves out partitions whose queue is full. The broker holds one that asks for
        // empty partitions only, and what comes of the full ones waits for its end: the client's 500 ms leave 8 MiB a second of a
        // partition beside idle ones. Shorter would cost the broker more for members that are idle: 0.2 % of a core each with this
        .set("fetch.wait.max.ms", "50")
        // each partition has a queue of its own, to which these bounds apply. One that is full isn't fetched for until the back-off is
        // over, so it holds what is handled meanwhile; with fewer messages one busy partition is read at half of its rate
        .set("queued.min.messages", window.messages.saturating_mul(20).clamp(1_000, 100_000).to_string())
        .set("queued.max.messages.kbytes", (window.bytes / 1024).clamp(1_024, 4_096).to_string())
        .set("coordinator.query.interval.ms", "1000");
    match config.group_protocol {
        GroupProtocol::Classic => {
            client
                .set("partition.assignment.strategy", "cooperative-sticky")
                .set("session.timeout.ms", millis(claim_timeout))
                .set("heartbeat.interval.ms", millis(heartbeat(claim_timeout)));
        }
        GroupProtocol::Consumer => {
            client.set("group.protocol", "consumer");
        }
    }
    native(&mut client, config);
    client
}

/// A time in the client's resolution, rounded up: a time-out may be longer than asked for, never shorter.
fn millis(time: Duration) -> String {
    // the client counts in 31 bits
    time.as_nanos().div_ceil(1_000_000).min(i32::MAX as u128).to_string()
}

/// How often a member shows that it lives; also how soon it hears of a rebalance.
pub(crate) fn heartbeat(claim_timeout: Duration) -> Duration {
    (claim_timeout / 10).clamp(Duration::from_millis(50), Duration::from_millis(500))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(query: &str) -> Result<KafkaConfig> {
        let config = KafkaConfig::from_url(&BrokerUrl::parse(&format!("kafka://h?{query}")).unwrap())?;
        config.check().map(|()| config)
    }

    #[test]
    fn properties_pass_beside_options() {
        let config = config("claim_timeout=6s&native.linger.ms=5&tenant=a&native.client.id=x%26y").unwrap();
        assert_eq!((config.claim_timeout, config.tenant.as_deref()), (Duration::from_secs(6), Some("a")));
        assert_eq!(config.native, [("linger.ms".into(), "5".into()), ("client.id".into(), "x&y".into())]);
        assert!(!format!("{config:?}").contains("x&y"));
    }

    fn producer_of(query: &str) -> ClientConfig {
        let url = BrokerUrl::parse(&format!("kafka://h?{query}")).unwrap();
        let config = config(query).unwrap();
        producer(&common(&url, &config).unwrap(), &config, 0)
    }

    fn consumer_of(query: &str, claim_timeout: Duration) -> ClientConfig {
        let url = BrokerUrl::parse(&format!("kafka://h?{query}")).unwrap();
        let config = config(query).unwrap();
        let window = Window { messages: 100, bytes: 1 << 20 };
        consumer(&common(&url, &config).unwrap(), &config, "g", claim_timeout, window)
    }

    #[test]
    fn a_single_publish_waits_for_no_timer() {
        let client = producer_of("");
        // the client's own default is 5 ms, in which it gathers a batch
        assert_eq!(client.get("linger.ms"), Some("0"));
        // with Nagle's algorithm a request waits for the acknowledgement of the one before
        assert_eq!(client.get("socket.nagle.disable"), Some("true"));
        let (queue, throughput) = ("queue.buffering.max.ms", "native.linger.ms=5");
        assert_eq!(client.get(queue), None, "an older name of the same property would win");
        assert_eq!(producer_of(throughput).get("linger.ms"), Some("5"), "who wants batches may ask for them");
    }

    #[test]
    fn each_broker_has_its_share_of_the_connect_time_out() {
        for (url, share) in [
            ("kafka://a", "5000"),
            ("kafka://a,b", "5000"),
            ("kafka://a,b?connect_timeout=6s", "3000"),
            ("kafka://a,b?connect_timeout=1s", "1000"),
        ] {
            let url = BrokerUrl::parse(url).unwrap();
            let client = common(&url, &url.options().unwrap()).unwrap();
            assert_eq!(client.get("socket.connection.setup.timeout.ms"), Some(share), "{url}");
            assert_eq!(client.get("api.version.request.timeout.ms"), Some(share), "{url}");
        }
    }

    #[test]
    fn a_busy_partition_waits_at_most_50_ms_for_an_idle_one() {
        // the broker holds a request for empty partitions that long, and the client has one request under way
        assert_eq!(consumer_of("", Duration::from_secs(30)).get("fetch.wait.max.ms"), Some("50"));
    }

    #[test]
    fn times_are_rounded_up_to_the_clients_milliseconds() {
        let claim_timeout = Duration::from_micros(1_000_001);
        assert_eq!(consumer_of("", claim_timeout).get("session.timeout.ms"), Some("1001"));
        assert_eq!(millis(Duration::from_secs(6)), "6000");
        assert_eq!(millis(Duration::from_nanos(1)), "1");
    }

    #[test]
    fn what_a_promise_rests_on_is_refused_with_its_reason() {
        for (name, why) in OURS {
            let error = config(&format!("native.{name}=1")).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn an_unknown_option_names_the_nearest() {
        let error = config("claim_timout=6s").unwrap_err().to_string();
        assert!(error.contains("did you mean `claim_timeout`?"), "{error}");
    }

    #[test]
    fn scram_without_its_feature_is_refused() {
        let url = BrokerUrl::parse("kafka://u:p@h?sasl_mechanism=scram-sha-256").unwrap();
        let made = common(&url, &KafkaConfig::from_url(&url).unwrap());
        assert_eq!(made.is_err(), !cfg!(feature = "tls"));
    }
}
