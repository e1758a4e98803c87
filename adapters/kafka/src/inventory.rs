//! What stands at the brokers: topics as channels, group ids as groups, by metadata and by what groups wrote down; and what this
//! connection may do there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postrider_core::{
    Channel, ChannelEntry, Error, ErrorKind, Finding, GroupEntry, GroupName, Inventory, Result, Scope,
};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};

use crate::broker::KafkaBroker;
use crate::connection::ClientLog;
use crate::error;
use crate::patience::ask_again;
use crate::positions;
use crate::properties;
use crate::rebalance::{Client, Listener};

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);

/// How many partitions each topic has, and how many members each group id.
#[derive(Debug, Default)]
struct Cluster {
    topics: BTreeMap<String, u32>,
    groups: BTreeMap<String, Option<u32>>,
}

/// The topics of `scope` that are there.
pub(crate) async fn read(broker: &KafkaBroker, scope: &Scope) -> Result<Inventory> {
    let naming = broker.topology().naming();
    let cluster = cluster(broker).await?;
    let mut wanted: Vec<(Channel, BTreeSet<GroupName>)> = Vec::new();
    let mut foreign = Vec::new();
    match scope {
        Scope::Everything => {
            let channels = cluster.topics.keys().filter_map(|topic| naming.channel(topic));
            wanted.extend(channels.map(|channel| (channel, BTreeSet::new())));
            let ids = cluster.groups.keys().filter_map(|id| naming.group_of(id));
            let own = cluster.topics.keys().filter_map(|topic| naming.redriven_to(topic));
            for (channel, group) in ids.chain(own) {
                if let Some((_, groups)) = wanted.iter_mut().find(|(name, _)| *name == channel) {
                    groups.insert(group);
                }
            }
            if broker.config().tenant.is_none() {
                let roles = |topic: &str| {
                    topic.starts_with("__")
                        || naming.redriven_to(topic).is_some()
                        || naming.closed_beside(topic).is_some()
                };
                let others =
                    cluster.topics.keys().filter(|topic| naming.channel(topic).is_none() && !roles(topic));
                foreign.extend(others.cloned());
            }
        }
        Scope::These(these) => {
            wanted.extend(
                these.iter().map(|(channel, groups)| (channel.clone(), groups.iter().cloned().collect())),
            );
        }
    }
    let mut channels = Vec::new();
    for (channel, groups) in wanted {
        let topic = naming.topic(&channel)?;
        let Some(partitions) = cluster.topics.get(&topic).copied() else { continue };
        let mut entry = filled(broker, ChannelEntry::new(&*channel), &topic, partitions).await?;
        for group in groups {
            let (id, own) = (naming.group(&channel, &group)?, naming.redrive(&channel, &group)?);
            let own = cluster.topics.get(&own).map(|count| (own, *count));
            let members = cluster.groups.get(&id);
            if members.is_none() && own.is_none() {
                continue;
            }
            let mut found = GroupEntry::new(&*group);
            found.members = members.copied().unwrap_or(Some(0));
            let mut topics = vec![(id, topic.clone(), partitions)];
            topics.extend(own.map(|(own, count)| (own.clone(), own, count)));
            let asked = || lag(broker, topics.clone());
            found.lag = Some(ask_again(broker.environment(), REQUEST, error::is_leaderless, asked).await?);
            entry.groups.push(found);
        }
        channels.push(entry);
    }
    for topic in foreign {
        let partitions = cluster.topics.get(&topic).copied().unwrap_or_default();
        channels.push(filled(broker, ChannelEntry::foreign(&topic), &topic, partitions).await?);
    }
    Ok(Inventory::new(channels))
}

/// With what the topic keeps.
async fn filled(
    broker: &KafkaBroker,
    mut entry: ChannelEntry,
    topic: &str,
    partitions: u32,
) -> Result<ChannelEntry> {
    entry.partitions = Some(partitions);
    entry.messages = Some(broker.connection().held("inventory", topic).await?);
    Ok(entry)
}

/// All topics and groups that this connection is shown.
async fn cluster(broker: &KafkaBroker) -> Result<Cluster> {
    let asked = broker.connection().ask(|client| {
        let metadata = client.fetch_metadata(None, REQUEST)?;
        let topics = metadata.topics().iter().filter(|topic| topic.error().is_none());
        let topics = topics.map(|topic| (topic.name().to_owned(), topic.partitions().len() as u32)).collect();
        Ok::<_, KafkaError>(topics)
    });
    let topics = asked.await?.map_err(|e| error::client("inventory", e))?;
    Ok(Cluster { topics, groups: groups(broker, "inventory").await? })
}

/// How many members each group id has, where the client can tell. A broker that has just begun, or has just been given groups, first
/// reads what it wrote down of them, and is asked again.
async fn groups(broker: &KafkaBroker, operation: &'static str) -> Result<BTreeMap<String, Option<u32>>> {
    let listed = || async {
        let asked = broker.connection().ask(|client| {
            let listed = client.fetch_group_list(None, REQUEST)?;
            let groups = listed.groups().iter().map(|group| {
                // groups of the newer protocol are described by a request that the client doesn't have
                let told = group.protocol_type() == "consumer" && group.state() != "Dead";
                (group.name().to_owned(), told.then(|| group.members().len() as u32))
            });
            Ok::<_, KafkaError>(groups.collect())
        });
        asked.await?.map_err(|e| error::client(operation, e))
    };
    let reads = |error: &Error| {
        use Code::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
        matches!(
            error::code_of(error),
            Some(CoordinatorLoadInProgress | CoordinatorNotAvailable | NotCoordinator)
        )
    };
    ask_again(broker.environment(), REQUEST, reads, listed).await
}

/// What is unsettled of these topics (each read by a group id, and with so many partitions), by what was written down.
async fn lag(broker: &KafkaBroker, topics: Vec<(String, String, u32)>) -> Result<u64> {
    let (common, config) = (broker.connection().common.clone(), broker.config().clone());
    let counted = tokio::task::spawn_blocking(move || {
        let mut lag = 0;
        for (group, topic, count) in topics {
            let client = properties::consumer(
                &common,
                &config,
                &group,
                config.claim_timeout,
                postrider_core::Window::default(),
            );
            // it asks and never joins, so nobody's partitions move
            let client: Client = client.create_with_context(Listener::default()).map_err(error::creation)?;
            lag += unsettled(&client, &topic, count)
                .map_err(|e| error::client("inventory", e).with("topic", topic))?;
        }
        Ok(lag)
    });
    counted
        .await
        .map_err(|e| Error::new(ErrorKind::Closed, "inventory", "the runtime is stopping").because(e))?
}

fn unsettled(client: &Client, topic: &str, count: u32) -> KafkaResult<u64> {
    let all: Vec<i32> = (0..count as i32).collect();
    if all.is_empty() {
        return Ok(0);
    }
    let edges = positions::edges(client, topic, &all, REQUEST)?;
    let mut written = positions::written(client, topic, &all, REQUEST)?;
    Ok(edges
        .into_iter()
        .map(|(partition, edges)| match written.remove(&partition) {
            Some(written) => written.lag(edges),
            None => edges.high - edges.low,
        })
        .sum())
}

/// What the cluster is, and what it lets this connection do.
pub(crate) async fn examine(broker: &KafkaBroker) -> Vec<Finding> {
    let asked = broker.connection().ask(|client| {
        let metadata = client.fetch_metadata(None, REQUEST)?;
        let leaderless = metadata
            .topics()
            .iter()
            .filter(|topic| topic.partitions().iter().any(|partition| partition.leader() < 0));
        let leaderless: Vec<_> = leaderless.map(|topic| topic.name().to_owned()).collect();
        let behind = metadata.topics().iter().filter(|topic| {
            topic.partitions().iter().any(|partition| partition.isr().len() < partition.replicas().len())
        });
        let cluster = client.fetch_cluster_id(REQUEST).unwrap_or_default();
        Ok::<_, KafkaError>((metadata.brokers().len(), cluster, leaderless, behind.count()))
    });
    let mut found = Vec::new();
    match asked.await.and_then(|asked| asked.map_err(|e| error::client("examine", e))) {
        Ok((brokers, cluster, leaderless, behind)) => {
            found.push(Finding::ok("server", format!("cluster {cluster} of {brokers} brokers")));
            found.push(if leaderless.is_empty() {
                Finding::ok("leaders", "every partition has one")
            } else {
                let next = "bring the brokers back that hold these partitions";
                Finding::failed("leaders", format!("none for a partition of {}", leaderless.join(", ")), next)
            });
            found.push(if behind == 0 {
                Finding::ok("replicas", "all are in sync")
            } else {
                Finding::warning(
                    "replicas",
                    format!("{behind} topics have replicas behind"),
                    "look at the brokers' logs",
                )
            });
        }
        Err(error) => {
            found.push(Finding::failed("server", error.to_string(), "check the user's access rules"));
        }
    }
    found.push(match groups(broker, "examine").await {
        Ok(groups) => Finding::ok("permission to list", format!("{} groups are shown", groups.len())),
        Err(error) => {
            let next = "allow Describe on groups and topics to the user";
            Finding::warning("permission to list", error.to_string(), next)
        }
    });
    found.push(match may_create(broker).await {
        Ok(()) => {
            Finding::ok("permission to create", "topics may be made (asked with `validate_only`: none was)")
        }
        Err(error) => {
            let next = "allow Create on topics to the user, or make topics yourself and use `declare=check`";
            Finding::warning("permission to create", error.to_string(), next)
        }
    });
    found
}

/// Asks to make a topic without making it.
async fn may_create(broker: &KafkaBroker) -> Result<()> {
    let mut config = broker.connection().common.clone();
    properties::native(&mut config, broker.config());
    let admin: AdminClient<ClientLog> = config.create_with_context(ClientLog).map_err(error::creation)?;
    let unique = format!("postrider-doctor-{:016x}", broker.environment().random());
    let topic = broker.topology().naming().topic(&unique)?;
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(-1));
    let options = AdminOptions::new().validate_only(true).request_timeout(Some(REQUEST));
    let answers = admin.create_topics([&new], &options).await;
    // ends with a join of the client's thread, which may take a moment
    tokio::task::spawn_blocking(move || drop(admin));
    match answers.map_err(|e| error::client("examine", e))?.into_iter().next() {
        Some(Err((_, code))) => Err(error::code("examine", code)),
        _ => Ok(()),
    }
}
