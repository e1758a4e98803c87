//! From a URL, or the environment, to a connected broker.

use postrider_core::{Broker, Env, Error, Registry, Result};

/// The environment variable that names the broker.
const VARIABLE: &str = "POSTRIDER_URL";

/// Every scheme that there is an adapter for, and the feature that compiles it in.
const KNOWN: &[(&str, &str)] = &[
    ("memory", "memory"),
    ("nats", "nats"),
    ("tls", "nats"),
    ("kafka", "kafka"),
    ("kafka+ssl", "kafka-tls"),
    ("amqp", "rabbitmq"),
    ("amqps", "rabbitmq"),
];

/// The connectors of the compiled features.
pub fn registry() -> Registry {
    let registry = Registry::new(KNOWN);
    #[cfg(feature = "memory")]
    let registry = registry.with(postrider_memory::MemoryConnector);
    #[cfg(feature = "nats")]
    let registry = registry.with(postrider_nats::NatsConnector);
    #[cfg(feature = "kafka")]
    let registry = registry.with(postrider_kafka::KafkaConnector);
    #[cfg(feature = "rabbitmq")]
    let registry = registry.with(postrider_rabbitmq::RabbitmqConnector);
    registry
}

/// Connects to the broker that the URL names: `memory:`, `nats://host:4222` and so on.
///
/// # Errors
/// An unknown scheme (listing those compiled in), an unknown option (naming the nearest), or a broker that doesn't answer
/// within the connect deadline of 10 s; never with the password.
pub async fn connect(url: &str) -> Result<Broker> {
    registry().connect(url, Env::system()).await
}

/// Connects to the broker that the environment variable `POSTRIDER_URL` names.
///
/// # Errors
/// If it isn't set, an error that lists the schemes compiled in; else as [`connect`].
pub async fn connect_from_env() -> Result<Broker> {
    if let Some(url) = url_from_env()? {
        connect(&url).await
    } else {
        let registry = registry();
        let schemes: Vec<_> = registry.schemes().map(|scheme| format!("`{scheme}:`")).collect();
        let message = format!(
            "the environment variable {VARIABLE} is not set; set it to a URL (compiled in: {})",
            schemes.join(", ")
        );
        Err(Error::config("connect", message))
    }
}

/// Connects to the broker that the environment variable `POSTRIDER_URL` names, or to `default` if it isn't set.
///
/// # Errors
/// As [`connect`].
pub async fn connect_from_env_or(default: &str) -> Result<Broker> {
    connect(&url_from_env()?.unwrap_or_else(|| default.into())).await
}

fn url_from_env() -> Result<Option<String>> {
    match std::env::var(VARIABLE) {
        Ok(url) => Ok(Some(url)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Error::config("connect", format!("the environment variable {VARIABLE} is not UTF-8")))
        }
    }
}
