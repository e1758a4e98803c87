//! The connection: made once, watched, and restored by the client. Everyone else asks here whether it is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event};
use postrider_core::{BrokerUrl, Env, Error, ErrorKind, Health, Result};
use tokio::sync::watch;

use crate::config::NatsConfig;
use crate::error;

const DEFAULT_PORT: u16 = 4222;

/// How the connection is. `generation` rises with every connect, so that one who slept through a cut sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) up: bool,
    pub(crate) generation: u64,
}

/// The client, and a watch on its state.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) client: Client,
    link: watch::Receiver<Link>,
    /// The link's `up`, for those who ask for each message.
    up: Arc<AtomicBool>,
}

impl Connection {
    /// Connects within the deadline, or says why not.
    pub(crate) async fn open(url: &BrokerUrl, config: &NatsConfig, env: &Env) -> Result<Self> {
        let addresses: Vec<_> = url.hosts().iter().map(|host| host.address(DEFAULT_PORT)).collect();
        if addresses.is_empty() {
            return Err(Error::config("connect", "the URL names no server; write `nats://host:4222`"));
        }
        if !matches!(url.path(), "" | "/") {
            return Err(Error::config(
                "connect",
                "a NATS URL has no path; write `nats://host:4222?option=value`",
            ));
        }
        let listed = addresses.join(", ");
        let (told, link) = watch::channel(Link { up: true, generation: 0 });
        let up = Arc::new(AtomicBool::new(true));
        let options = options(url, config, env, told, Arc::clone(&up)).await?;
        let servers = addresses.iter().map(|address| address.parse::<async_nats::ServerAddr>());
        let servers = servers.collect::<std::result::Result<Vec<_>, _>>().map_err(|e| {
            Error::config("connect", "the address can't be read").with("address", &listed).because(e)
        })?;
        let connecting = tokio::time::timeout(config.connect_timeout, options.connect(servers));
        let client = match connecting.await {
            Ok(Ok(client)) => client,
            Ok(Err(e)) => return Err(error::connect(e, &listed)),
            Err(_) => {
                let message = format!("no server answered within {:?}", config.connect_timeout);
                return Err(Error::new(ErrorKind::Timeout, "connect", message).with("address", listed));
            }
        };
        Ok(Self { client, link, up })
    }

    pub(crate) fn link(&self) -> Link {
        *self.link.borrow()
    }

    /// How often the client has connected: it counts before it takes anything over a new connection, while word of that comes later.
    pub(crate) fn connects(&self) -> u64 {
        self.client.statistics().connects.load(Relaxed)
    }

    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Relaxed)
    }

    /// Resolves when the connection is there.
    pub(crate) async fn up(&self) -> Link {
        let mut link = self.link.clone();
        // copied out at once: the reference holds a lock
        let found = link.wait_for(|link| link.up).await.map(|link| *link);
        match found {
            Ok(link) => link,
            // the client is gone, and with it whoever waits
            Err(_) => std::future::pending().await,
        }
    }

    /// Resolves when the connection isn't the one of `generation` any more, or is down.
    pub(crate) async fn changed(&self, since: Link) -> Link {
        let mut link = self.link.clone();
        let found = link.wait_for(|link| *link != since).await.map(|link| *link);
        match found {
            Ok(link) => link,
            Err(_) => std::future::pending().await,
        }
    }

    pub(crate) fn health(&self) -> Health {
        if self.is_up() {
            Health::up()
        } else {
            Health::degraded("the connection is lost and is being restored")
        }
    }
}

/// What the client reports.
struct Ears {
    link: watch::Sender<Link>,
    up: Arc<AtomicBool>,
    connects: AtomicU64,
}

impl Ears {
    fn hear(&self, event: Event) {
        match event {
            Event::Connected => {
                // the first one is the link that connecting began with: it may be told when something was sent already, and nothing of
                // that is lost
                let generation = self.connects.fetch_add(1, Relaxed);
                self.up.store(true, Relaxed);
                self.link.send_replace(Link { up: true, generation });
            }
            Event::Disconnected | Event::Closed => {
                self.up.store(false, Relaxed);
                self.link.send_modify(|link| link.up = false);
            }
            Event::ServerError(error) => {
                tracing::warn!(target: "postrider::connection", %error, "server error");
            }
            Event::ClientError(error) => {
                tracing::warn!(target: "postrider::connection", %error, "client error");
            }
            Event::SlowConsumer(subscription) => {
                tracing::error!(target: "postrider::connection", subscription, "the client dropped messages");
            }
            _ => {}
        }
    }
}

async fn options(
    url: &BrokerUrl,
    config: &NatsConfig,
    env: &Env,
    link: watch::Sender<Link>,
    up: Arc<AtomicBool>,
) -> Result<ConnectOptions> {
    let ears = Ears { link, up, connects: AtomicU64::new(0) };
    let jitter = env.clone();
    let mut options = ConnectOptions::new()
        .name("postrider")
        .ping_interval(config.ping_interval)
        // each server has its share, so that a silent one leaves time for the others
        .connection_timeout(share(config.connect_timeout, url.hosts().len()))
        .request_timeout(Some(config.connect_timeout))
        .subscription_capacity(65_536)
        .client_capacity(2048)
        .max_reconnects(None)
        .reconnect_delay_callback(move |attempts| {
            // doubled up to two seconds, half of it by chance, so that many clients don't come back at once
            let step = Duration::from_millis(20 << attempts.min(7)).min(Duration::from_secs(2));
            step / 2 + (step / 2).mul_f64(jitter.random() as f64 / u64::MAX as f64)
        })
        .event_callback(move |event| {
            ears.hear(event);
            std::future::ready(())
        });
    if let (Some(user), Some(password)) = (url.user(), url.password()) {
        options = options.user_and_password(user.into(), password.into());
    } else if let Some(token) = url.user() {
        options = options.token(token.into());
    }
    if let Some(token) = &config.token {
        options = options.token(token.clone());
    }
    if let Some(seed) = &config.nkey {
        options = options.nkey(seed.clone());
    }
    if let Some(path) = &config.creds {
        options = options.credentials_file(path).await.map_err(|e| {
            Error::config("connect", "the credentials file can't be read")
                .with("creds", path.display())
                .because(e)
        })?;
    }
    if let Some(path) = &config.tls_ca {
        options = options.add_root_certificates(path.clone());
    }
    if let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) {
        options = options.add_client_certificate(cert.clone(), key.clone());
    }
    if url.scheme() == "tls" || config.tls_ca.is_some() {
        options = options.require_tls(true);
    }
    Ok(options)
}

/// How long one of `servers` may take to answer.
fn share(timeout: Duration, servers: usize) -> Duration {
    timeout / u32::try_from(servers).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_its_share_of_the_time_out() {
        let timeout = Duration::from_secs(10);
        assert_eq!([0, 1, 2, 5].map(|servers| share(timeout, servers).as_secs()), [10, 10, 5, 2]);
    }

    #[test]
    fn the_first_connect_is_no_loss_and_each_later_one_is() {
        let first = Link { up: true, generation: 0 };
        let (link, seen) = watch::channel(first);
        let ears = Ears { link, up: Arc::new(AtomicBool::new(true)), connects: AtomicU64::new(0) };
        ears.hear(Event::Connected);
        assert_eq!(*seen.borrow(), first);
        ears.hear(Event::Disconnected);
        assert!(!seen.borrow().up && !ears.up.load(Relaxed));
        ears.hear(Event::Connected);
        assert_eq!((*seen.borrow(), ears.up.load(Relaxed)), (Link { up: true, generation: 1 }, true));
        // also where nobody heard of the cut
        ears.hear(Event::Connected);
        assert_eq!(seen.borrow().generation, 2);
    }
}
