//! A supervised connection: made, watched, and made again. The client's own recovery is off. There are two of them, since an
//! alarm at the broker blocks a publishing connection as a whole, acknowledgements included.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt;
use lapin::tcp::{OwnedIdentity, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{ConnectionProperties, Event};
use postrider_core::{BrokerUrl, Env, Error, ErrorKind, Health, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::RabbitmqConfig;
use crate::error;

/// How often a connection is looked at that says nothing.
const LOOK: Duration = Duration::from_millis(100);
/// The longest wait between two attempts to connect again.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// How long closing may wait for the broker's answer.
const FAREWELL: Duration = Duration::from_secs(5);

/// How the connection is. `generation` rises with every connect, so that one who slept through a cut sees it.
#[derive(Clone, Default)]
pub(crate) struct State {
    pub(crate) generation: u64,
    pub(crate) connection: Option<Arc<lapin::Connection>>,
    /// Why the broker takes no publishes at present.
    pub(crate) blocked: Option<Arc<str>>,
    /// Closed by us: it doesn't come back.
    pub(crate) closed: bool,
    /// Why the last attempt to connect again failed.
    trouble: Option<Arc<Error>>,
}

/// A connection and its supervisor. Clones share both.
#[derive(Clone, Debug)]
pub(crate) struct Link(Arc<Inner>);

struct Inner {
    state: watch::Receiver<State>,
    /// Kept apart from the state: it is asked for with each message.
    frame: Arc<AtomicUsize>,
    stop: CancellationToken,
    supervisor: std::sync::Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

/// What is shown and believed on a TLS connection, in PEM.
#[derive(Clone, Default)]
struct Tls {
    authority: Option<String>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Where to connect to, and as whom. No `Debug`: it holds the password.
#[derive(Clone)]
pub(crate) struct Target {
    uris: Vec<AMQPUri>,
    tls: Tls,
    timeout: Duration,
    env: Env,
    /// The server that is tried first.
    next: Arc<AtomicUsize>,
}

impl Target {
    pub(crate) fn new(url: &BrokerUrl, config: &RabbitmqConfig, env: Env) -> Result<Self> {
        if url.hosts().is_empty() {
            return Err(Error::config("connect", "the URL names no broker; write `amqp://host:5672`"));
        }
        let scheme = if url.scheme() == "amqps" { AMQPScheme::AMQPS } else { AMQPScheme::AMQP };
        if scheme == AMQPScheme::AMQP && (config.tls_ca.is_some() || config.tls_cert.is_some()) {
            return Err(Error::config("connect", "TLS options need the scheme `amqps://`"));
        }
        let vhost = match url.path().strip_prefix('/') {
            None | Some("") => "/",
            Some(vhost) => vhost,
        };
        let userinfo = AMQPUserInfo {
            username: url.user().unwrap_or("guest").into(),
            password: url.password().unwrap_or("guest").into(),
        };
        let query = AMQPQueryString {
            heartbeat: Some(config.heartbeat.as_secs() as u16),
            auth_mechanism: config.external.then_some(SASLMechanism::External),
            ..AMQPQueryString::default()
        };
        let uri = |host: &postrider_core::Host| AMQPUri {
            scheme: scheme.clone(),
            authority: AMQPAuthority {
                userinfo: userinfo.clone(),
                host: host.name.clone(),
                port: host.port.unwrap_or(scheme.default_port()),
            },
            vhost: vhost.into(),
            query: query.clone(),
        };
        let uris = url.hosts().iter().map(uri).collect();
        let tls = if scheme == AMQPScheme::AMQPS {
            let read = |option: &'static str, path: &std::path::PathBuf| {
                std::fs::read(path).map_err(|e| {
                    Error::config("connect", format!("the file of `{option}` can't be read"))
                        .with("path", path.display())
                        .because(e)
                })
            };
            let authority = match &config.tls_ca {
                Some(path) => Some(String::from_utf8_lossy(&read("tls_ca", path)?).into_owned()),
                None => None,
            };
            let identity = match (&config.tls_cert, &config.tls_key) {
                (Some(cert), Some(key)) => Some((read("tls_cert", cert)?, read("tls_key", key)?)),
                _ => None,
            };
            Tls { authority, identity }
        } else {
            Tls::default()
        };
        Ok(Self { uris, tls, timeout: config.connect_timeout, env, next: Arc::default() })
    }

    fn listed(&self) -> String {
        let hosts = self.uris.iter().map(|uri| format!("{}:{}", uri.authority.host, uri.authority.port));
        hosts.collect::<Vec<_>>().join(", ")
    }

    /// Tries each server once, each for its share of the time-out, so that a silent one leaves time for the others. After a
    /// connection is lost, the server behind the lost one comes first.
    async fn connect(&self, name: &str) -> Result<lapin::Connection> {
        let (count, first) = (self.uris.len(), self.next.load(Relaxed));
        let share = self.timeout / u32::try_from(count).unwrap_or(u32::MAX).max(1);
        let mut refused = None;
        for at in (0..count).map(|turn| (first + turn) % count) {
            let uri = &self.uris[at];
            let address = format!("{}:{}", uri.authority.host, uri.authority.port);
            tokio::select! {
                biased;
                outcome = self.connect_one(uri.clone(), name) => match outcome {
                    Ok(connection) => {
                        self.next.store(at + 1, Relaxed);
                        return Ok(connection);
                    }
                    Err(e) => refused = Some(error::connect(e, &address)),
                },
                () = self.env.sleep(share) => {
                    tracing::debug!(target: "postrider::connection", address, ?share, "no answer within the server's share of the time-out");
                }
            }
        }
        Err(refused.unwrap_or_else(|| {
            let message = format!("no broker answered within {:?}", self.timeout);
            Error::new(ErrorKind::Timeout, "connect", message).with("address", self.listed())
        }))
    }

    async fn connect_one(&self, uri: AMQPUri, name: &str) -> lapin::Result<lapin::Connection> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let Tls { authority: cert_chain, identity } = self.tls.clone();
        let identity = identity.map(|(pem, key)| OwnedIdentity::PKCS8 { pem, key });
        let tls = OwnedTLSConfig { identity, cert_chain };
        let runtime = lapin::runtime::default_runtime()?;
        lapin::Connection::connect_uri_with_config(uri, properties, tls, runtime).await
    }
}

impl Link {
    /// Connects, or says why not; then the supervisor keeps it.
    pub(crate) async fn open(target: Target, name: &'static str) -> Result<Self> {
        // each link has a turn of its own
        let target = Target { next: Arc::default(), ..target };
        let connection = target.connect(name).await?;
        let frame = Arc::new(AtomicUsize::new(frame(&connection)));
        let first = State { generation: 1, connection: Some(Arc::new(connection)), ..State::default() };
        let (sender, state) = watch::channel(first);
        let stop = CancellationToken::new();
        let mut supervisor = JoinSet::new();
        supervisor.spawn(supervise(target, name, sender, Arc::clone(&frame), stop.clone()));
        Ok(Self(Arc::new(Inner { state, frame, stop, supervisor: supervisor.into() })))
    }

    /// How it is now.
    pub(crate) fn state(&self) -> State {
        self.0.state.borrow().clone()
    }

    /// The largest frame that client and broker have agreed on for the present or the last connection, in bytes.
    pub(crate) fn frame(&self) -> usize {
        self.0.frame.load(Relaxed)
    }

    /// Resolves when there is a connection.
    pub(crate) async fn up(&self) -> (u64, Arc<lapin::Connection>) {
        let mut state = self.0.state.clone();
        let found = state.wait_for(|state| state.connection.is_some()).await.map(|state| state.clone());
        match found {
            Ok(State { generation, connection: Some(connection), .. }) => (generation, connection),
            // the supervisor is gone, and with it whoever waits
            _ => std::future::pending().await,
        }
    }

    /// As [`up`](Self::up), within the connect deadline.
    ///
    /// # Errors
    /// `Closed`, or `Timeout` when there is none by then.
    pub(crate) async fn up_within(
        &self,
        operation: &'static str,
        env: &Env,
        config: &RabbitmqConfig,
    ) -> Result<(u64, Arc<lapin::Connection>)> {
        if self.state().closed {
            return Err(Error::new(ErrorKind::Closed, operation, "the broker is closed; connect again"));
        }
        tokio::select! {
            biased;
            up = self.up() => Ok(up),
            () = env.sleep(config.connect_timeout) => {
                let message = format!("the connection was lost and not restored within {:?}", config.connect_timeout);
                Err(Error::new(ErrorKind::Timeout, operation, message))
            }
        }
    }

    /// Works on the connection of `generation`; `None` when that is lost before the work is done. The client leaves some calls
    /// without an answer for ever when the connection is lost under them.
    pub(crate) async fn during<T>(&self, generation: u64, work: impl Future<Output = T>) -> Option<T> {
        let mut state = self.0.state.clone();
        let lost = async {
            // an error is a supervisor that is gone, and the connection with it
            let _ =
                state.wait_for(|state| state.generation != generation || state.connection.is_none()).await;
        };
        tokio::select! {
            biased;
            out = work => Some(out),
            () = lost => None,
        }
    }

    /// As [`during`](Self::during), for an operation that somebody waits for.
    pub(crate) async fn operation<T>(
        &self,
        operation: &'static str,
        generation: u64,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.during(generation, work).await.unwrap_or_else(|| {
            Err(Error::new(ErrorKind::Connection, operation, "the connection was lost meanwhile; try again"))
        })
    }

    /// A receiver that sees every change.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.0.state.clone()
    }

    /// Closes the connection for good.
    pub(crate) async fn close(&self) {
        self.0.stop.cancel();
        let tasks =
            std::mem::take(&mut *self.0.supervisor.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        tasks.join_all().await;
    }

    pub(crate) fn health(&self) -> Health {
        let state = self.state();
        if state.closed {
            return Health::down("the connection is closed");
        }
        if state.connection.is_none() {
            let lost = "the connection is lost and is being restored";
            return match state.trouble {
                Some(error) if error.kind() == ErrorKind::Unauthorized => {
                    Health::down(format!("{lost}; {error}"))
                }
                Some(error) => Health::degraded(format!("{lost}; {error}")),
                None => Health::degraded(lost),
            };
        }
        match state.blocked {
            Some(reason) => {
                Health::degraded(format!("the broker takes no publishes at present (alarm: {reason})"))
            }
            None => Health::up(),
        }
    }
}

fn frame(connection: &lapin::Connection) -> usize {
    connection.configuration().frame_max() as usize
}

async fn supervise(
    target: Target,
    name: &'static str,
    state: watch::Sender<State>,
    largest: Arc<AtomicUsize>,
    stop: CancellationToken,
) {
    loop {
        let connection = state.borrow().connection.clone();
        if let Some(connection) = connection {
            tokio::select! {
                () = watch_one(&connection, &state, &target.env) => {}
                () = stop.cancelled() => {
                    tokio::select! {
                        // a connection that is lost at this moment is closed as well
                        _ = connection.close(200, "closed by the client".into()) => {}
                        () = target.env.sleep(FAREWELL) => {}
                    }
                    state.send_modify(|state| (state.connection, state.closed) = (None, true));
                    return;
                }
            }
            tracing::warn!(target: "postrider::connection", name, "connection lost");
            state.send_modify(|state| (state.connection, state.blocked) = (None, None));
        }
        let mut wait = Duration::from_millis(50);
        loop {
            let attempt = async {
                match target.connect(name).await {
                    Ok(connection) => Some(connection),
                    Err(error) => {
                        tracing::debug!(target: "postrider::connection", name, %error, "no connection yet");
                        state.send_modify(|state| state.trouble = Some(Arc::new(error)));
                        let jitter = target.env.random() % (wait.as_millis() as u64 / 2).max(1);
                        target.env.sleep(wait + Duration::from_millis(jitter)).await;
                        None
                    }
                }
            };
            let connected = tokio::select! {
                connected = attempt => connected,
                () = stop.cancelled() => {
                    state.send_modify(|state| state.closed = true);
                    return;
                }
            };
            if let Some(connection) = connected {
                tracing::info!(target: "postrider::connection", name, "connected again");
                largest.store(frame(&connection), Relaxed);
                state.send_modify(|state| {
                    state.generation += 1;
                    state.connection = Some(Arc::new(connection));
                    state.trouble = None;
                });
                break;
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }
}

/// Resolves when the connection is lost; passes on what the broker says about alarms.
async fn watch_one(connection: &lapin::Connection, state: &watch::Sender<State>, env: &Env) {
    let mut events = std::pin::pin!(connection.events_listener());
    while connection.status().connected() {
        tokio::select! {
            event = events.next() => match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    tracing::warn!(target: "postrider::connection", reason, "the broker takes no publishes");
                    state.send_modify(|state| state.blocked = Some(reason.into()));
                }
                Some(Event::ConnectionUnblocked) => {
                    tracing::info!(target: "postrider::connection", "the broker takes publishes again");
                    state.send_modify(|state| state.blocked = None);
                }
                Some(Event::Error(error)) => {
                    tracing::debug!(target: "postrider::connection", %error, "connection error");
                }
                Some(_) => {}
                None => return,
            },
            // an orderly close by the broker comes without an event
            () = env.sleep(LOOK) => {}
        }
    }
}
