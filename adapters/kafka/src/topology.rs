//! What must exist at the broker, made or checked: topics. (Groups exist by being joined.)

use std::time::Duration;

use postrider_core::{Env, Error, ErrorKind, RETRY_TIERS, Result};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use crate::config::{DeclareMode, KafkaConfig};
use crate::connection::{ClientLog, Connection};
use crate::error;
use crate::naming::Naming;
use crate::patience::ask_again;
use crate::properties;

/// How long a broker may take to show a topic that was made.
const SHOWN: Duration = Duration::from_secs(10);

/// Makes and checks topics.
#[derive(Debug)]
pub(crate) struct Topology {
    connection: Connection,
    naming: Naming,
    config: KafkaConfig,
    env: Env,
}

/// What a topic is made with.
struct Wanted<'a> {
    channel: &'a str,
    /// At least so many, where a number was asked for.
    partitions: Option<u32>,
    /// So many, where it is made.
    made_with: u32,
    settings: &'static [(&'static str, &'static str)],
}

impl Topology {
    pub(crate) fn new(connection: Connection, naming: Naming, config: &KafkaConfig, env: Env) -> Self {
        Self { connection, naming, config: config.clone(), env }
    }

    pub(crate) fn naming(&self) -> &Naming {
        &self.naming
    }

    /// Makes sure of a channel's topic, with at least so many partitions as asked for.
    pub(crate) async fn channel(&self, channel: &str, partitions: Option<u32>) -> Result<()> {
        let made_with = partitions.unwrap_or(self.config.partitions);
        self.topic(Wanted { channel, partitions, made_with, settings: &[] }).await
    }

    /// Makes sure of a dead-letter channel's topic, which keeps its messages until somebody deletes them.
    pub(crate) async fn dead_letters(&self, channel: &str) -> Result<()> {
        let settings = &[("retention.ms", "-1"), ("retention.bytes", "-1")];
        self.topic(Wanted { channel, partitions: None, made_with: 1, settings }).await
    }

    /// Makes sure of the topic that says which dead letters of a channel are closed.
    pub(crate) async fn closed(&self, channel: &str) -> Result<()> {
        let wanted =
            Wanted { channel, partitions: None, made_with: 1, settings: &[("cleanup.policy", "compact")] };
        self.named(wanted, self.naming.closed(channel)?).await
    }

    /// Makes sure of the topic of what is one group's alone: a partition for what is redriven, and one for each time that a message
    /// can wait for its retry.
    pub(crate) async fn redrive(&self, channel: &str, group: &str) -> Result<()> {
        let count = 1 + RETRY_TIERS.len() as u32;
        let wanted = Wanted { channel, partitions: Some(count), made_with: count, settings: &[] };
        self.named(wanted, self.naming.redrive(channel, group)?).await
    }

    async fn topic(&self, wanted: Wanted<'_>) -> Result<()> {
        let topic = self.naming.topic(wanted.channel)?;
        self.named(wanted, topic).await
    }

    async fn named(&self, wanted: Wanted<'_>, topic: String) -> Result<()> {
        if self.config.declare == DeclareMode::None {
            return Ok(());
        }
        match self.settled(&topic).await? {
            Some(found) => check(&wanted, &topic, found),
            None if self.config.declare == DeclareMode::Check => {
                let message = "there is no such topic, and nothing may be created (`declare=check`); create it, or use `declare=create`";
                let error = Error::new(ErrorKind::NotFound, "declare", message);
                Err(error.with("topic", topic).with("channel", wanted.channel))
            }
            None => {
                self.create(&wanted, &topic).await?;
                self.shown(&wanted, &topic).await
            }
        }
    }

    /// The topic's partitions, once it has leaders for all of them.
    async fn settled(&self, topic: &str) -> Result<Option<u32>> {
        ask_again(&self.env, SHOWN, Error::is_temporary, || self.connection.partitions("declare", topic))
            .await
    }

    async fn create(&self, wanted: &Wanted<'_>, topic: &str) -> Result<()> {
        let mut config = self.connection.common.clone();
        properties::native(&mut config, &self.config);
        let admin: AdminClient<ClientLog> = config.create_with_context(ClientLog).map_err(error::creation)?;
        let replication = TopicReplication::Fixed(self.config.replicas.map_or(-1, |copies| copies as i32));
        let new = NewTopic::new(topic, wanted.made_with as i32, replication);
        let new = wanted.settings.iter().fold(new, |new, (name, value)| new.set(name, value));
        let options = AdminOptions::new()
            .request_timeout(Some(self.config.connect_timeout))
            .operation_timeout(Some(Duration::from_secs(5)));
        let answers = admin.create_topics([&new], &options).await;
        // ends with a join of the client's thread, which may take a moment
        tokio::task::spawn_blocking(move || drop(admin));
        let answers = answers.map_err(|e| error::client("declare", e).with("topic", topic))?;
        match answers.into_iter().next() {
            // another process was faster; whether it made the same one is checked next
            Some(Ok(_) | Err((_, Code::TopicAlreadyExists))) => Ok(()),
            Some(Err((_, Code::InvalidReplicationFactor))) => {
                let message = "the cluster has fewer brokers than copies are asked for; lower `replicas`";
                Err(Error::new(ErrorKind::Mismatch, "declare", message).with("topic", topic))
            }
            Some(Err((_, Code::InvalidTopic))) => Err(self.invalid(topic).await),
            Some(Err((_, code))) => Err(error::code("declare", code).with("topic", topic)),
            None => Err(Error::new(ErrorKind::Broker, "declare", "the broker didn't say what became of it")
                .with("topic", topic)),
        }
    }

    /// Why the broker takes no topic of that name.
    async fn invalid(&self, topic: &str) -> Error {
        let asked = self.connection.ask(|client| {
            let metadata = client.fetch_metadata(None, SHOWN)?;
            Ok::<_, KafkaError>(
                metadata.topics().iter().map(|topic| topic.name().to_owned()).collect::<Vec<_>>(),
            )
        });
        // that they can't be listed says less than what the broker said already
        let all = asked.await.ok().and_then(std::result::Result::ok).unwrap_or_default();
        let Some(other) = all.iter().find(|other| collides(topic, other)) else {
            return error::code("declare", Code::InvalidTopic).with("topic", topic);
        };
        let message = format!(
            "the topic can't be made beside the topic `{other}`: to Kafka, `.` and `_` in a name are the same; choose another name for the channel"
        );
        Error::new(ErrorKind::Mismatch, "declare", message).with("topic", topic)
    }

    /// Resolves when the brokers show what was made.
    async fn shown(&self, wanted: &Wanted<'_>, topic: &str) -> Result<()> {
        let deadline = self.env.now() + SHOWN;
        loop {
            if let Some(found) = self.settled(topic).await? {
                return check(wanted, topic, found);
            }
            if self.env.now() >= deadline {
                let message = format!("the topic was made, but no broker shows it after {SHOWN:?}");
                return Err(Error::new(ErrorKind::Timeout, "declare", message).with("topic", topic));
            }
            self.env.sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Whether Kafka takes two names for the same, since its metrics do.
fn collides(topic: &str, other: &str) -> bool {
    topic != other && topic.replace('.', "_") == other.replace('.', "_")
}

fn check(wanted: &Wanted<'_>, topic: &str, found: u32) -> Result<()> {
    let Some(asked) = wanted.partitions.filter(|asked| *asked > found) else {
        return Ok(());
    };
    let message = format!(
        "the topic has {found} partitions, fewer than the {asked} asked for; more would move keys to other places, so that is never done by itself: ask for fewer, or choose another channel"
    );
    let error = Error::new(ErrorKind::Mismatch, "declare", message).with("topic", topic);
    Err(error.with("expected", format!("at least {asked}")).with("found", found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dot_and_an_underscore_collide() {
        assert!(collides("x.eu", "x_eu") && collides("x_eu", "x.eu") && collides("a.b_c", "a_b.c"));
        assert!(!collides("x.eu", "x.eu") && !collides("x.eu", "x-eu"));
    }
}
