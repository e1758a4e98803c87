//! Asking the API, and what its answers mean. Names are read by the adapter.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use postrider::rabbitmq::{ListedQueue, Listing, Naming, RabbitmqConfig};
use postrider::{BrokerUrl, Error, ErrorKind, Inventory, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The port that the plugin listens on unless told otherwise.
const PORT: u16 = 15672;
/// How long an answer may take, in seconds.
const PATIENCE: u64 = 5;

/// Where the API is, and how to ask. No `Debug`: it holds the password.
#[derive(Clone)]
struct Api {
    base: String,
    authorization: String,
    vhost: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Overview {
    rabbitmq_version: String,
}

/// All channels and groups of the URL's virtual host and tenant.
pub(crate) async fn inventory(url: &BrokerUrl, given: Option<&str>) -> Result<Inventory> {
    let api = Api::new(url, given)?;
    let config: RabbitmqConfig = url.options()?;
    let naming = Naming::new(config.tenant.as_deref())?;
    let exchanges: Vec<Named> = api.ask("exchanges", "?columns=name").await?;
    let queues: Vec<ListedQueue> = api.ask("queues", "?columns=name,messages,consumers").await?;
    let exchanges = exchanges.into_iter().map(|exchange| exchange.name).collect();
    Ok(Listing { exchanges, queues }.inventory(&naming))
}

/// The broker's version.
pub(crate) async fn version(url: &BrokerUrl, given: Option<&str>) -> Result<String> {
    let api = Api::new(url, given)?;
    let overview: Overview = api.get(format!("{}/api/overview", api.base)).await?;
    Ok(overview.rabbitmq_version)
}

impl Api {
    fn new(url: &BrokerUrl, given: Option<&str>) -> Result<Self> {
        let given = given.map(BrokerUrl::parse).transpose()?;
        let from = given.as_ref().unwrap_or(url);
        if given.as_ref().is_some_and(|given| given.scheme() != "http") {
            let message = "the management API is asked over plain HTTP only; write `http://host:15672`, by way of a tunnel where it has TLS";
            return Err(Error::config("list", message).with("management-url", from));
        }
        let Some(host) = from.hosts().first() else {
            return Err(Error::config("list", "the URL of the management API names no host"));
        };
        // on another port, or with TLS, it may be another broker's that listens on the usual one
        let usual = url.scheme() == "amqp" && host.port.is_none_or(|port| port == 5672);
        if given.is_none() && !usual {
            let message = "where the management API is can't be guessed; give `--management-url`";
            return Err(Error::new(ErrorKind::Connection, "list", message));
        }
        let base = match (given.is_some(), host.port) {
            (true, Some(_)) => host.address(PORT),
            (true, None) => host.address(80),
            (false, _) => postrider::Host { port: None, ..host.clone() }.address(PORT),
        };
        let user = from.user().or(url.user()).unwrap_or("guest");
        let password = from.password().or(url.password()).unwrap_or("guest");
        let vhost = match url.path().strip_prefix('/') {
            None | Some("") => "/",
            Some(vhost) => vhost,
        };
        Ok(Self {
            base: format!(
                "http://{base}{}",
                if given.is_some() { from.path().trim_end_matches('/') } else { "" }
            ),
            authorization: format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))),
            vhost: escaped(vhost),
        })
    }

    /// A list of the virtual host.
    async fn ask<T: DeserializeOwned + Send + 'static>(&self, what: &str, query: &str) -> Result<T> {
        self.get(format!("{}/api/{what}/{}{query}", self.base, self.vhost)).await
    }

    async fn get<T: DeserializeOwned + Send + 'static>(&self, url: String) -> Result<T> {
        let (authorization, base) = (self.authorization.clone(), self.base.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let failed = |kind, message: &str| Error::new(kind, "list", message).with("management", &base);
            let answer =
                minreq::get(url).with_header("Authorization", authorization).with_timeout(PATIENCE).send();
            let answer = answer.map_err(|e| {
                failed(ErrorKind::Connection, "the management API doesn't answer; is its plugin enabled?")
                    .because(e)
            })?;
            match answer.status_code {
                200 => {}
                401 | 403 => {
                    let message =
                        "the management API refuses the user; it needs the tag `monitoring` or `management`";
                    return Err(failed(ErrorKind::Unauthorized, message));
                }
                404 => {
                    return Err(failed(
                        ErrorKind::NotFound,
                        "the management API doesn't know the virtual host",
                    ));
                }
                code => {
                    return Err(failed(ErrorKind::Broker, "the management API refuses").with("status", code));
                }
            }
            serde_json::from_slice(answer.as_bytes()).map_err(|e| {
                failed(ErrorKind::Broker, "what answers is no management API of RabbitMQ").because(e)
            })
        });
        asked
            .await
            .map_err(|e| Error::new(ErrorKind::Closed, "list", "the runtime is stopping").because(e))?
    }
}

/// Percent-encoded, as one segment of a path.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            // writing to a string can't fail
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_is_where_the_broker_is_unless_it_is_named() {
        let url = BrokerUrl::parse("amqp://ann:pw@h:5672/shop%2fa").unwrap();
        let guessed = Api::new(&url, None).unwrap();
        assert_eq!((&*guessed.base, &*guessed.vhost), ("http://h:15672", "shop%2Fa"));
        assert_eq!(guessed.authorization, format!("Basic {}", STANDARD.encode("ann:pw")));
        let named = Api::new(&url, Some("http://bob:x@m:1/mq/")).unwrap();
        assert_eq!((&*named.base, &*named.vhost), ("http://m:1/mq", "shop%2Fa"));
        assert_eq!(named.authorization, format!("Basic {}", STANDARD.encode("bob:x")));
        for (url, given) in [("amqps://h", None), ("amqp://h:5674", None), ("amqp://h", Some("https://h"))] {
            assert!(Api::new(&BrokerUrl::parse(url).unwrap(), given).is_err(), "{url}");
        }
    }
}
