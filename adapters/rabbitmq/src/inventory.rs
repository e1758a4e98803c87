//! What stands at the broker: exchanges as channels, queues as groups; and what this connection may do there. AMQP can't list, so
//! only what is named is looked up; a [`Listing`] that came by another way is read here as well.

use std::collections::BTreeMap;

use lapin::options::{ExchangeDeclareOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ExchangeKind};
use postrider_core::{ChannelEntry, Finding, GroupEntry, HealthState, Inventory, KEY_SLOTS, Result, Scope};
use serde::Deserialize;

use crate::broker::RabbitmqBroker;
use crate::error;
use crate::naming::{Naming, Role};

/// Exchanges and queues of one virtual host, as the broker's management API lists them.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The names of all exchanges.
    pub exchanges: Vec<String>,
    /// All queues.
    pub queues: Vec<ListedQueue>,
}

/// A queue of a [`Listing`]. Its fields are those of the management API.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ListedQueue {
    /// The queue's name.
    pub name: String,
    /// How many messages are in it, delivered ones included; the API counts every few seconds.
    pub messages: Option<u64>,
    /// How many consumers attend to it.
    pub consumers: Option<u32>,
}

impl Listing {
    /// The channels and groups of a tenant. Without one, queues by other names are here as well, by their own name.
    pub fn inventory(&self, naming: &Naming) -> Inventory {
        let exchanges = self.exchanges.iter().filter(|name| !name.is_empty() && !name.starts_with("amq."));
        let mut channels: BTreeMap<String, ChannelEntry> = BTreeMap::new();
        for name in exchanges {
            if let Some((channel, Role::Channel)) = naming.read(name) {
                channels.insert(channel.to_string(), ChannelEntry::new(&*channel));
            }
        }
        let mut foreign = Vec::new();
        for queue in &self.queues {
            let ours = naming.read(&queue.name);
            let entry = ours.as_ref().and_then(|(channel, _)| channels.get_mut(&**channel));
            let (Some((_, role)), Some(entry)) = (ours, entry) else {
                if !naming.has_tenant() {
                    let mut entry = ChannelEntry::foreign(&queue.name);
                    entry.messages = queue.messages;
                    foreign.push(entry);
                }
                continue;
            };
            match role {
                Role::Channel => entry.messages = queue.messages,
                Role::Partition(group, number) => {
                    let group = group_of(entry, &group);
                    add(group, queue.messages);
                    if number.is_some() {
                        group.partitions = Some(group.partitions.unwrap_or_default() + 1);
                    }
                }
                Role::Retry(group) => add(group_of(entry, &group), queue.messages),
                // every member attends to it, also one that stands by
                Role::Marker(group) => group_of(entry, &group).members = queue.consumers,
                Role::Ephemeral | Role::Other(_) => {}
            }
        }
        Inventory::new(channels.into_values().chain(foreign))
    }
}

fn group_of<'a>(entry: &'a mut ChannelEntry, name: &str) -> &'a mut GroupEntry {
    let at = entry.groups.iter().position(|group| group.group == name).unwrap_or_else(|| {
        entry.groups.push(GroupEntry::new(name));
        entry.groups.len() - 1
    });
    &mut entry.groups[at]
}

fn add(entry: &mut GroupEntry, messages: Option<u64>) {
    if let Some(messages) = messages {
        entry.lag = Some(entry.lag.unwrap_or_default() + messages);
    }
}

/// The named channels and groups that are there.
pub(crate) async fn read(broker: &RabbitmqBroker, scope: &Scope) -> Result<Inventory> {
    let Scope::These(wanted) = scope else {
        // refused before it comes here: AMQP has no word for it
        return Ok(Inventory::default());
    };
    let link = broker.consuming();
    let (generation, connection) = link.up_within("inventory", broker.environment(), broker.config()).await?;
    let naming = broker.topology().naming();
    let looked = async {
        let mut channels = Vec::new();
        for (channel, groups) in wanted {
            let exchange = naming.exchange(channel)?;
            if !has_exchange(&connection, &exchange).await? {
                continue;
            }
            let mut entry = ChannelEntry::new(&**channel);
            entry.messages = queue(&connection, &exchange).await?.map(|(messages, _)| messages);
            for group in groups {
                entry.groups.extend(named(&connection, naming, channel, group).await?);
            }
            channels.push(entry);
        }
        Ok(Inventory::new(channels))
    };
    link.operation("inventory", generation, looked).await
}

/// The group by its queues, one or many.
async fn named(
    connection: &Connection,
    naming: &Naming,
    channel: &str,
    group: &str,
) -> Result<Option<GroupEntry>> {
    let mut entry = GroupEntry::new(group);
    if let Some((messages, _)) = queue(connection, &naming.queue(channel, group, 0, 1)?).await? {
        entry.lag = Some(messages);
    } else {
        for partition in 0..KEY_SLOTS {
            let name = naming.queue(channel, group, partition, KEY_SLOTS)?;
            let Some((messages, _)) = queue(connection, &name).await? else { break };
            add(&mut entry, Some(messages));
            entry.partitions = Some(partition + 1);
        }
    }
    if entry.lag.is_none() {
        return Ok(None);
    }
    entry.members = queue(connection, &naming.marker(channel, group)?).await?.map(|(_, consumers)| consumers);
    Ok(Some(entry))
}

/// How many messages are ready in a queue, and how many attend to it; `None` where there is no such queue.
async fn queue(connection: &Connection, name: &str) -> Result<Option<(u64, u32)>> {
    // a refusal closes the channel, so each look has its own
    let failed = |e| error::of("inventory", e).with("queue", name);
    let channel = connection.create_channel().await.map_err(failed)?;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    match channel.queue_declare(name.into(), options, FieldTable::default()).await {
        Ok(found) => {
            // a channel that is lost is closed as well
            let _ = channel.close(200, "looked up".into()).await;
            Ok(Some((found.message_count().into(), found.consumer_count())))
        }
        Err(e) if error::is_not_found(&e) => Ok(None),
        Err(e) => Err(failed(e)),
    }
}

async fn has_exchange(connection: &Connection, name: &str) -> Result<bool> {
    let failed = |e| error::of("inventory", e).with("exchange", name);
    let channel = connection.create_channel().await.map_err(failed)?;
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    match channel.exchange_declare(name.into(), ExchangeKind::Direct, options, FieldTable::default()).await {
        Ok(()) => {
            let _ = channel.close(200, "looked up".into()).await;
            Ok(true)
        }
        Err(e) if error::is_not_found(&e) => Ok(false),
        Err(e) => Err(failed(e)),
    }
}

/// How the broker is, as far as AMQP tells, and what it lets this connection do.
pub(crate) async fn examine(broker: &RabbitmqBroker) -> Vec<Finding> {
    let mut found =
        vec![Finding::ok("server", "RabbitMQ answers over AMQP (which doesn't tell its version)")];
    let health = postrider_core::Adapter::health(broker);
    found.push(match (health.state, health.reason) {
        (HealthState::Up, _) => Finding::ok("alarms", "the broker takes publishes"),
        (_, reason) => {
            let next = "free memory or disk at the broker; publishing waits meanwhile";
            Finding::warning("alarms", reason.unwrap_or_default(), next)
        }
    });
    found.push(match may_declare(broker).await {
        Ok(()) => Finding::ok("permission to declare", "queues may be made (one was, and is gone again)"),
        Err(error) => {
            let next = "give the user the permission `configure`, or make the topology yourself and use `declare=check`";
            Finding::warning("permission to declare", error.to_string(), next)
        }
    });
    found
}

/// Makes a queue that belongs to this connection alone, and deletes it.
async fn may_declare(broker: &RabbitmqBroker) -> Result<()> {
    let link = broker.consuming();
    let (generation, connection) = link.up_within("examine", broker.environment(), broker.config()).await?;
    let name = broker
        .topology()
        .naming()
        .exchange(&format!("postrider-doctor-{:016x}", broker.environment().random()))?;
    let tried = async {
        let failed = |e| error::of("examine", e).with("queue", &name);
        let channel = connection.create_channel().await.map_err(failed)?;
        let options =
            QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(name.as_str().into(), options, FieldTable::default()).await.map_err(failed)?;
        channel.queue_delete(name.as_str().into(), QueueDeleteOptions::default()).await.map_err(failed)?;
        // a channel that is lost is closed as well
        let _ = channel.close(200, "tried".into()).await;
        Ok(())
    };
    link.operation("examine", generation, tried).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_is_read_by_the_names_of_its_tenant() {
        let queue = |name: &str, messages, consumers| ListedQueue {
            name: name.into(),
            messages: Some(messages),
            consumers: Some(consumers),
        };
        let listing = Listing {
            exchanges: [
                "",
                "amq.direct",
                "a~orders",
                "a~orders--unslotted",
                "a~orders.billing.dlq",
                "b~orders",
            ]
            .map(String::from)
            .into(),
            queues: vec![
                queue("a~orders--billing--0", 2, 1),
                queue("a~orders--billing--1", 3, 1),
                queue("a~orders--billing--partitions", 0, 4),
                queue("a~orders--billing--retry-10s", 5, 0),
                queue("a~orders--~0000000000000001", 9, 1),
                queue("a~orders.billing.dlq", 7, 0),
                queue("b~orders--billing", 1, 1),
                queue("jobs", 1, 1),
            ],
        };
        let inventory = listing.inventory(&Naming::new(Some("a")).unwrap());
        let names: Vec<_> = inventory.channels.iter().map(|entry| &*entry.channel).collect();
        assert_eq!(names, ["orders", "orders.billing.dlq"]);
        let billing = inventory.channel("orders").unwrap().group("billing").unwrap();
        assert_eq!((billing.lag, billing.members, billing.partitions), (Some(10), Some(4), Some(2)));
        assert_eq!(inventory.channel("orders.billing.dlq").unwrap().messages, Some(7));
        let all = listing.inventory(&Naming::default());
        assert!(all.channels.iter().all(|entry| entry.foreign) && all.channels.len() == 8);
    }
}
