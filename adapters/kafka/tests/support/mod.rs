//! Brokers for the tests: the shared one, and private ones that a test may kill.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use postrider_conformance::proxy::Proxy;
use postrider_conformance::{Controls, Settings, free_port};
use postrider_core::{BoxFuture, Broker, BrokerUrl, Connector, Env};
use postrider_kafka::KafkaConnector;
use tokio::process::Command;

/// What a broker for tests is set to: claims that end within a test's patience.
const EXTRA: &str = "
group.min.session.timeout.ms=500
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=3000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=300
";

/// The broker that all tests share.
#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) fn shared_url() -> String {
    std::env::var("POSTRIDER_TEST_KAFKA_URL")
        .expect("POSTRIDER_TEST_KAFKA_URL names a Kafka broker; `cargo xtask test` starts one and sets it")
}

/// `host:port` of a URL without user and options.
#[allow(dead_code, reason = "not every test file needs it")]
pub(crate) fn address(url: &str) -> String {
    let url = BrokerUrl::parse(url).expect("a good URL");
    url.hosts()[0].address(9092)
}

/// The URL with what a case asks for.
pub(crate) fn with_options(url: &str, settings: &Settings, protocol: &str) -> String {
    let mut url = format!(
        "{url}{}tenant={}&group_protocol={protocol}",
        if url.contains('?') { '&' } else { '?' },
        settings.tenant
    );
    if let Some(timeout) = settings.claim_timeout {
        let _ = write!(url, "&claim_timeout={}ms", timeout.as_millis());
    }
    url
}

/// A broker of the test's own, with a proxy in front. It ends with the test.
pub(crate) struct PrivateBroker {
    port: u16,
    data: PathBuf,
    proxy: Proxy,
    protocol: &'static str,
    controller: u16,
    tls: u16,
}

impl PrivateBroker {
    /// Starts one whose clients come through the proxy.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) async fn start(protocol: &'static str) -> Self {
        Self::start_with(protocol, |_, _| String::new()).await
    }

    /// Starts one, with lines added to its configuration; they may depend on its port and the controller's.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) async fn start_with(protocol: &'static str, lines: impl FnOnce(u16, u16) -> String) -> Self {
        Self::start_with_settings(protocol, lines, &[]).await
    }

    /// The same, with settings of the script's.
    pub(crate) async fn start_with_settings(
        protocol: &'static str,
        lines: impl FnOnce(u16, u16) -> String,
        settings: &[(&'static str, &str)],
    ) -> Self {
        let [port, controller, tls] = [(); 3].map(|()| free_port());
        let data = std::env::temp_dir().join(format!("postrider-kafka-{}-{port}", std::process::id()));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let proxy = Proxy::start(address).await.expect("the proxy starts");
        let broker = Self { port, data, proxy, protocol, controller, tls };
        broker.up(&lines(port, controller), settings).await;
        broker
    }

    /// Starts it anew on its data, with other lines in its configuration.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) async fn restart(&self, lines: impl FnOnce(u16, u16) -> String) {
        self.script("kill", &[]).await;
        self.up(&lines(self.port, self.controller), &[]).await;
    }

    async fn up(&self, lines: &str, settings: &[(&'static str, &str)]) {
        // clients go where the broker says it is: to the proxy
        let to_the_proxy = format!("advertised.listeners=PLAINTEXT://{}", self.proxy.address());
        let all = [
            ("KAFKA_PORT", self.port.to_string()),
            ("KAFKA_CONTROLLER_PORT", self.controller.to_string()),
            ("KAFKA_TLS_PORT", self.tls.to_string()),
            ("BROKERS_KAFKA_HEAP", "256m".to_owned()),
            ("BROKERS_KAFKA_EXTRA", format!("{EXTRA}{to_the_proxy}\n{lines}")),
        ];
        let settings = settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let all: Vec<_> = all.into_iter().chain(settings).collect();
        self.script("up", &all).await;
    }

    /// The folder of its certificates.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub(crate) fn certificates(&self) -> PathBuf {
        self.data.join("kafka/tls")
    }

    fn command(&self, verb: &str) -> Command {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../xtask/brokers.sh");
        let mut command = Command::new("bash");
        command.arg(script).args([verb, "kafka"]).env("BROKERS_DATA", &self.data).stdin(Stdio::null());
        command
    }

    async fn script(&self, verb: &str, settings: &[(&str, String)]) {
        let mut command = self.command(verb);
        command.env_remove("BROKERS_TLS");
        command.envs(settings.iter().map(|(name, value)| (*name, value.as_str())));
        let output = command.output().await.expect("the script runs");
        assert!(
            output.status.success(),
            "brokers {verb} kafka on port {}: {}",
            self.port,
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for PrivateBroker {
    fn drop(&mut self) {
        // in good order it would take its time; nobody needs its data
        for verb in ["kill", "wipe"] {
            let mut command = self.command(verb).into_std();
            // the test is over: what can't be tidied up now, the system will
            let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

impl Controls for PrivateBroker {
    fn connect(&self, settings: Settings) -> BoxFuture<'_, Broker> {
        Box::pin(async move {
            let url = with_options(&format!("kafka://{}", self.proxy.address()), &settings, self.protocol);
            let url = BrokerUrl::parse(&url).expect("a good URL");
            KafkaConnector.connect(&url, Env::system()).await.expect("the broker answers")
        })
    }

    fn proxy(&self) -> &Proxy {
        &self.proxy
    }

    fn kill(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.script("kill", &[]))
    }

    fn start(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.script("start", &[]))
    }

    fn pause(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.script("pause", &[]))
    }

    fn resume(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.script("resume", &[]))
    }
}
