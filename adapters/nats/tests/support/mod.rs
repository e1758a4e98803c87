//! Servers for the tests: the shared one, and private ones that a test may kill.

#![allow(dead_code, reason = "not every test file needs all of it")]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use postrider_conformance::proxy::Proxy;
use postrider_conformance::{Controls, Settings, free_port};
use postrider_core::{BoxFuture, Broker, BrokerUrl, Connector, Env};
use postrider_nats::NatsConnector;
use tokio::process::Command;

/// The server that all tests share.
pub(crate) fn shared_url() -> String {
    std::env::var("POSTRIDER_TEST_NATS_URL")
        .expect("POSTRIDER_TEST_NATS_URL names a NATS server; `cargo xtask test` starts one and sets it")
}

/// The URL with what a case asks for.
pub(crate) fn with_options(url: &str, settings: &Settings) -> String {
    let mut url = format!("{url}{}tenant={}", if url.contains('?') { '&' } else { '?' }, settings.tenant);
    if let Some(timeout) = settings.claim_timeout {
        let _ = write!(url, "&claim_timeout={}ms", timeout.as_millis());
    }
    if settings.resend {
        url.push_str("&on_unknown=resend");
    }
    url
}

/// A server of the test's own, with a proxy in front. It ends with the test.
pub(crate) struct PrivateServer {
    port: u16,
    monitor: u16,
    data: PathBuf,
    proxy: Proxy,
}

impl PrivateServer {
    /// Starts one, with lines added to its configuration.
    pub(crate) async fn start(extra: &str) -> Self {
        let (port, monitor) = (free_port(), free_port());
        let data = std::env::temp_dir().join(format!("postrider-nats-{}-{port}", std::process::id()));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let proxy = Proxy::start(address).await.expect("the proxy starts");
        let server = Self { port, monitor, data, proxy };
        server.up(extra).await;
        server
    }

    /// Starts it anew on its data, with other lines in its configuration.
    pub(crate) async fn restart(&self, extra: &str) {
        self.script("kill", &[], "").await;
        self.up(extra).await;
    }

    async fn up(&self, extra: &str) {
        let (port, monitor) = (self.port.to_string(), self.monitor.to_string());
        self.script("up", &[("NATS_PORT", port), ("NATS_MONITOR_PORT", monitor)], extra).await;
    }

    /// `127.0.0.1:port`, without the proxy.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn command(&self, verb: &str) -> Command {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../xtask/brokers.sh");
        let mut command = Command::new("bash");
        command.arg(script).args([verb, "nats"]).env("BROKERS_DATA", &self.data).stdin(Stdio::null());
        command
    }

    async fn script(&self, verb: &str, settings: &[(&str, String)], extra: &str) {
        let mut command = self.command(verb);
        command
            .envs(settings.iter().map(|(name, value)| (*name, value.as_str())))
            .env("BROKERS_NATS_EXTRA", extra);
        command.env_remove("BROKERS_TLS");
        let output = command.output().await.expect("the script runs");
        assert!(output.status.success(), "brokers {verb} nats: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for PrivateServer {
    fn drop(&mut self) {
        let mut command = self.command("wipe").into_std();
        // the test is over: what can't be tidied up now, the system will
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

impl Controls for PrivateServer {
    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            let url = with_options(&format!("nats://{}?ping_interval=2s", self.proxy.address()), &settings);
            let url = BrokerUrl::parse(&url).expect("a good URL");
            NatsConnector.connect(&url, Env::system()).await.expect("the server answers")
        })
    }

    fn proxy(&self) -> &Proxy {
        &self.proxy
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
}
