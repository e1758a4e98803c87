//! Which broker, and how to be rid of it in good order.

use std::time::Duration;

use clap::Args;
use postrider::{Broker, BrokerUrl, Error, Publisher, Result};

/// How long closing the connection may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// The broker that a command works on.
#[derive(Args)]
pub(crate) struct Target {
    /// The broker: `kafka://host:9092`, `amqp://user:password@host/vhost`, `nats://host:4222`, with options such as `?tenant=a`
    #[arg(
        long,
        global = true,
        env = "POSTRIDER_URL",
        hide_env_values = true,
        value_name = "URL",
        display_order = 900
    )]
    url: Option<String>,
}

impl Target {
    /// Connects.
    pub(crate) async fn connect(&self) -> Result<Broker> {
        let url = self.url()?;
        if url.scheme() == "memory" {
            let message = "the embedded broker lives inside its own program, where no command reaches it; name a Kafka, RabbitMQ or NATS server";
            return Err(Error::config("connect", message));
        }
        postrider::connect(self.text()?).await
    }

    /// The URL, read.
    pub(crate) fn url(&self) -> Result<BrokerUrl> {
        BrokerUrl::parse(self.text()?)
    }

    fn text(&self) -> Result<&str> {
        self.url.as_deref().ok_or_else(|| {
            let message = "no broker is named; set POSTRIDER_URL or give `--url`, such as `--url nats://127.0.0.1:4222`";
            Error::config("connect", message)
        })
    }
}

/// Closes the connection in good order.
pub(crate) async fn close(broker: &Broker) {
    broker.close(broker.env().now() + FAREWELL).await;
}
