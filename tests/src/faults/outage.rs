//! The dead-letter channel, closed and opened again by the broker's own means: what is in it stays, and nothing more gets in.

use anyhow::{Context as _, Result, bail};
use postrider::BrokerUrl;

use super::driver::Run;

/// The channel of the dead letters.
#[cfg(any(feature = "nats", feature = "kafka", feature = "rabbitmq"))]
const LETTERS: &str = "orders.billing.dlq";

/// Closes the channel, or opens it again.
#[allow(clippy::unused_async, reason = "compiled without any broker, there is nothing to wait for")]
pub(super) async fn close(run: &Run, closed: bool) -> Result<()> {
    let url = BrokerUrl::parse(&run.broker_url)?;
    let host = url.hosts().first().context("the URL names no host")?;
    match run.broker.as_str() {
        #[cfg(feature = "nats")]
        "nats" => nats::close(&host.address(4222), &run.tenant, closed).await,
        #[cfg(feature = "kafka")]
        "kafka" => kafka::close(&host.address(9092), &run.tenant, closed).await,
        #[cfg(feature = "rabbitmq")]
        "rabbitmq" => rabbitmq::close(run, closed).await,
        other => {
            let _ = (host, closed);
            bail!("the dead letters of {other} can't be closed");
        }
    }
}

/// A stream that takes messages of one byte.
#[cfg(feature = "nats")]
mod nats {
    use anyhow::{Context as _, Result};
    use postrider::nats::Naming;

    pub(super) async fn close(address: &str, tenant: &str, closed: bool) -> Result<()> {
        let client = async_nats::connect(address).await.context("the server doesn't answer")?;
        let streams = async_nats::jetstream::new(client);
        let name = Naming::new(Some(tenant))?.stream(super::LETTERS)?;
        let stream = streams.get_stream(name).await.context("there is no stream of dead letters")?;
        let mut config = stream.cached_info().config.clone();
        config.max_message_size = if closed { 1 } else { -1 };
        streams.update_stream(config).await.context("the stream can't be set")?;
        Ok(())
    }
}

/// A topic that takes messages of one byte.
#[cfg(feature = "kafka")]
mod kafka {
    use anyhow::{Context as _, Result, bail};
    use postrider::kafka::Naming;
    use rdkafka::ClientConfig;
    use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ConfigSource, ResourceSpecifier};
    use rdkafka::client::DefaultClientContext;

    const LARGEST: &str = "max.message.bytes";

    pub(super) async fn close(address: &str, tenant: &str, closed: bool) -> Result<()> {
        let topic = Naming::new(Some(tenant))?.topic(super::LETTERS)?;
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", address).create()?;
        let (which, options) = (ResourceSpecifier::Topic(&topic), AdminOptions::new());
        let found = admin.describe_configs([&which], &options).await.context("the broker doesn't answer")?;
        let Some(Ok(found)) = found.into_iter().next() else { bail!("there is no topic of dead letters") };
        // the topic is set anew as a whole
        let kept: Vec<_> = found
            .entries
            .into_iter()
            .filter(|entry| entry.source == ConfigSource::DynamicTopic && entry.name != LARGEST)
            .filter_map(|entry| Some((entry.name, entry.value?)))
            .collect();
        let mut config = AlterConfig::new(which);
        for (name, value) in &kept {
            config = config.set(name, value);
        }
        if closed {
            config = config.set(LARGEST, "1");
        }
        let altered = admin.alter_configs([&config], &options).await.context("the broker doesn't answer")?;
        match altered.into_iter().find_map(Result::err) {
            Some((topic, code)) => bail!("{topic:?} can't be set: {code}"),
            None => Ok(()),
        }
    }
}

/// No exchange by which a letter would get to its queues.
#[cfg(feature = "rabbitmq")]
mod rabbitmq {
    use anyhow::{Context as _, Result};
    use lapin::ConnectionProperties;
    use lapin::options::ExchangeDeleteOptions;
    use postrider::rabbitmq::Naming;
    use postrider::{Channel, Declare, Group, GroupName, Publisher as _, SubscribeOptions};

    use super::super::driver::Run;

    pub(super) async fn close(run: &Run, closed: bool) -> Result<()> {
        if closed {
            let connection = lapin::Connection::connect(&run.broker_url, ConnectionProperties::default());
            let connection = connection.await.context("the broker doesn't answer")?;
            let admin = connection.create_channel().await?;
            let exchange = Naming::new(Some(&run.tenant))?.exchange(super::LETTERS)?;
            admin.exchange_delete(exchange.into(), ExchangeDeleteOptions::default()).await?;
            connection.close(200, "".into()).await?;
            return Ok(());
        }
        let broker = postrider::connect(&run.url).await?;
        let letters = Channel::new(super::LETTERS)?;
        let auditor = SubscribeOptions::new(letters.clone(), Group::Named(GroupName::new("auditor")?));
        broker.declare_all(&[Declare::DeadLetters(letters), Declare::Group(auditor)]).await?;
        broker.close(std::time::Instant::now() + std::time::Duration::from_secs(5)).await;
        Ok(())
    }
}
