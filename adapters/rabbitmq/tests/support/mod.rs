//! Brokers for the tests: the shared one, and private ones that a test may kill.

mod factory;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use postrider_conformance::proxy::Proxy;
use postrider_conformance::{Controls, Settings, free_port};
use postrider_core::{BoxFuture, Broker, BrokerUrl, Connector, Env};
use postrider_rabbitmq::RabbitmqConnector;
use tokio::process::Command;

/// The versions that are tested.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code, reason = "not every test file needs both")]
pub(crate) enum Version {
    V3_10,
    V4_0,
}

impl Version {
    /// The broker that all tests share.
    pub(crate) fn shared_url(self) -> String {
        let name = match self {
            Self::V3_10 => "POSTRIDER_TEST_RABBITMQ_URL",
            Self::V4_0 => "POSTRIDER_TEST_RABBITMQ4_URL",
        };
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} names a RabbitMQ; `cargo xtask test` starts one and sets it"))
    }

    /// Its name to the project's script, and before the names of its settings.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::V3_10 => ("rabbitmq", "RABBITMQ"),
            Self::V4_0 => ("rabbitmq4", "RABBITMQ4"),
        }
    }
}

/// The URL with what a case asks for.
#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) fn with_options(url: &str, settings: &Settings) -> String {
    let mut url = format!("{url}{}tenant={}", if url.contains('?') { '&' } else { '?' }, settings.tenant);
    if let Some(timeout) = settings.claim_timeout {
        // a member that vanished is noticed by its missing heartbeats
        let _ = write!(url, "&heartbeat={}s", timeout.as_secs().max(1));
    }
    if settings.resend {
        url.push_str("&on_unknown=resend");
    }
    url
}

/// A broker of the test's own, with a proxy in front. It ends with the test.
pub(crate) struct PrivateBroker {
    version: Version,
    tls: bool,
    port: u16,
    data: PathBuf,
    proxy: Proxy,
}

impl PrivateBroker {
    /// Starts one, with lines added to its configuration.
    pub(crate) async fn start(version: Version, extra: &str) -> Self {
        Self::start_with(version, extra, false).await
    }

    /// The same, on TLS if asked for.
    pub(crate) async fn start_with(version: Version, extra: &str, tls: bool) -> Self {
        Self::start_with_plugins(version, extra, tls, "").await
    }

    /// The same, with these plugins.
    pub(crate) async fn start_with_plugins(version: Version, extra: &str, tls: bool, plugins: &str) -> Self {
        let port = free_port();
        let data = std::env::temp_dir().join(format!("postrider-rabbitmq-{}-{port}", std::process::id()));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let proxy = Proxy::start(address).await.expect("the proxy starts");
        let broker = Self { version, tls, port, data, proxy };
        let prefix = version.names().1;
        let mut ports = vec![(format!("{prefix}_{}", if tls { "TLS_PORT" } else { "PORT" }), port)];
        for name in [if tls { "PORT" } else { "TLS_PORT" }, "MANAGEMENT_PORT", "DIST_PORT", "EPMD_PORT"] {
            ports.push((format!("{prefix}_{name}"), free_port()));
        }
        let plugins = ("BROKERS_RABBITMQ_PLUGINS".to_owned(), plugins.to_owned());
        let settings = ports.into_iter().map(|(name, port)| (name, port.to_string())).chain([plugins]);
        broker.script("up", &settings.collect::<Vec<_>>(), extra).await;
        broker
    }

    /// `127.0.0.1:port`, without the proxy.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The folder of its certificates.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) fn certificates(&self) -> PathBuf {
        self.data.join(self.version.names().0).join("tls")
    }

    /// `rabbitmqctl`.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) async fn ctl(&self, arguments: &[&str]) {
        let mut command = self.command("ctl");
        let output = command.args(arguments).output().await.expect("the script runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {said}");
    }

    fn command(&self, verb: &str) -> Command {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../xtask/brokers.sh");
        let mut command = Command::new("bash");
        command
            .arg(script)
            .args([verb, self.version.names().0])
            .env("BROKERS_DATA", &self.data)
            .stdin(Stdio::null());
        command
    }

    async fn script(&self, verb: &str, settings: &[(String, String)], extra: &str) {
        let mut command = self.command(verb);
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command
            .env("BROKERS_RABBITMQ_MANAGEMENT", "0")
            .env("BROKERS_RABBITMQ_EXTRA", extra)
            .env("BROKERS_TLS", u8::from(self.tls).to_string());
        let output = command.output().await.expect("the script runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "brokers {verb}: {said}");
    }
}

impl Drop for PrivateBroker {
    fn drop(&mut self) {
        let mut command = self.command("wipe").into_std();
        // the test is over: what can't be tidied up now, the system will
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

impl Controls for PrivateBroker {
    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            let heartbeat = if settings.claim_timeout.is_some() { "" } else { "?heartbeat=2s" };
            let url = format!("amqp://guest:guest@{}/%2f{heartbeat}", self.proxy.address());
            let url = BrokerUrl::parse(&with_options(&url, &settings)).expect("a good URL");
            RabbitmqConnector.connect(&url, Env::system()).await.expect("the broker answers")
        })
    }

    fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    /// RabbitMQ loses a queue that is declared just before its only node is killed: Mnesia writes its log about every two
    /// seconds. This flushes the log. A version without Mnesia answers with an error, which is ignored.
    fn settled(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.ctl(&["eval", "catch mnesia:sync_log()."]).await;
            // no command flushes the stores of the queues themselves, and nothing tells when they have written
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        })
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.script("kill", &[], ""))
    }

    fn start(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.script("start", &[], ""))
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.script("pause", &[], ""))
    }

    fn resume(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.script("resume", &[], ""))
    }

    fn alarm(&self, raised: bool) -> BoxFuture<'_, bool> {
        Box::pin(async move {
            let watermark = if raised { "0.00001" } else { "0.4" };
            self.ctl(&["set_vm_memory_high_watermark", watermark]).await;
            true
        })
    }
}
