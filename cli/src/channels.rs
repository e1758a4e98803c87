//! `postrider channels`: channels with the groups that read them.

use clap::Args;
use postrider::{
    Broker, Capability, Channel, ChannelEntry, Error, ErrorKind, GroupEntry, GroupName, Inventory, Result,
    Scope,
};

use crate::connect::{Target, close};
use crate::end::{End, Failure};
use crate::management;
use crate::output::{self, cell};

/// What a broker that can't be listed is asked about.
#[derive(Args)]
pub(crate) struct Named {
    /// Only this channel; may be given again
    #[arg(long = "channel", value_name = "CHANNEL")]
    channels: Vec<String>,
    /// Where the broker can't list (RabbitMQ without its management API): this group of each channel; may be given again
    #[arg(long = "group", value_name = "GROUP", requires = "channels")]
    groups: Vec<String>,
    /// RabbitMQ's management API; port 15672 of a broker on port 5672, with the URL's user, if not given
    #[arg(long, value_name = "URL", env = "POSTRIDER_MANAGEMENT_URL", hide_env_values = true)]
    management_url: Option<String>,
}

impl Named {
    fn scope(&self) -> Result<Scope> {
        let groups: Vec<_> = self.groups.iter().map(|name| GroupName::new(&**name)).collect::<Result<_>>()?;
        let channels = self.channels.iter().map(|name| Ok((Channel::new(&**name)?, groups.clone())));
        Ok(Scope::These(channels.collect::<Result<_>>()?))
    }

    /// The channels that are named.
    pub(crate) fn names(&self) -> &[String] {
        &self.channels
    }

    fn wants(&self, entry: &ChannelEntry) -> bool {
        self.channels.is_empty() || self.channels.contains(&entry.channel)
    }

    /// What stands at the broker: by its own list, by RabbitMQ's management API, or what is named.
    pub(crate) async fn inventory(&self, target: &Target, broker: &Broker) -> Result<Inventory> {
        let named = self.scope()?;
        let mut inventory = if broker.capabilities().has(Capability::Inventory) {
            broker.inventory(&Scope::Everything).await?
        } else {
            match management::inventory(&target.url()?, self.management_url.as_deref()).await {
                Ok(listed) => {
                    eprintln!("listed by the management API, which counts every few seconds");
                    listed
                }
                // one that was named has to answer
                Err(error) if self.management_url.is_some() => return Err(error),
                Err(error) if self.channels.is_empty() => {
                    let message = "AMQP can't list; enable the plugin `rabbitmq_management` and give `--management-url`, or name channels and groups: `--channel orders --group billing`";
                    return Err(Error::new(ErrorKind::Unsupported, "list", message).because(error));
                }
                Err(_) => {
                    eprintln!(
                        "the management API doesn't answer; only the named channels and groups are looked up, and only what is ready in their queues is counted"
                    );
                    broker.inventory(&named).await?
                }
            }
        };
        inventory.channels.retain(|entry| self.wants(entry));
        Ok(inventory)
    }
}

/// Which channels.
#[derive(Args)]
#[command(after_help = "\
Examples:
  postrider channels
  postrider channels --json | jq '.channels[] | select(.foreign | not) | .channel'
  postrider channels --channel orders --group billing

MESSAGES is what the channel itself keeps, LAG what a group has still to settle. `-` is what the broker doesn't tell.
A name with `*` behind it is no channel of this connection, but another tenant's or somebody else's.")]
pub(crate) struct Options {
    #[command(flatten)]
    named: Named,
    /// Answer with one JSON object
    #[arg(long)]
    json: bool,
}

/// Lists.
pub(crate) async fn main(target: &Target, options: Options) -> std::result::Result<End, Failure> {
    let broker = target.connect().await?;
    let inventory = options.named.inventory(target, &broker).await;
    close(&broker).await;
    let inventory = inventory?;
    if options.json {
        output::json(&inventory)?;
    } else if inventory.channels.is_empty() {
        eprintln!(
            "there is no channel{}",
            if options.named.channels.is_empty() { " yet" } else { " of that name" }
        );
    } else {
        output::line(&table(&inventory))?;
    }
    let all = options
        .named
        .channels
        .iter()
        .all(|name| inventory.channels.iter().any(|entry| entry.channel == *name));
    if !all && !inventory.channels.is_empty() {
        eprintln!("some of the named channels are not there");
    }
    Ok(End::of(all))
}

fn table(inventory: &Inventory) -> String {
    let mut rows = Vec::new();
    for entry in &inventory.channels {
        let name = format!("{}{}", entry.channel, if entry.foreign { "*" } else { "" });
        if entry.groups.is_empty() {
            rows.push(row(&name, entry, None, true));
        }
        for (number, group) in entry.groups.iter().enumerate() {
            // a channel's own figures stand once
            let first = number == 0;
            rows.push(row(if first { &name } else { "" }, entry, Some(group), first));
        }
    }
    output::table(&["CHANNEL", "MESSAGES", "GROUP", "LAG", "MEMBERS", "PARTITIONS"], &rows)
}

fn row(name: &str, entry: &ChannelEntry, group: Option<&GroupEntry>, first: bool) -> Vec<String> {
    let partitions = group.and_then(|group| group.partitions).or(entry.partitions);
    vec![
        name.to_owned(),
        if first { cell(entry.messages) } else { String::new() },
        cell(group.map(|group| &*group.group)),
        cell(group.and_then(|group| group.lag)),
        cell(group.and_then(|group| group.members)),
        cell(partitions),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_stands_above_its_groups() {
        let mut orders = ChannelEntry::new("orders");
        orders.messages = Some(200);
        let mut billing = GroupEntry::new("billing");
        (billing.lag, billing.members, billing.partitions) = (Some(3), Some(2), Some(8));
        orders.groups = vec![billing, GroupEntry::new("ledger")];
        let mut events = ChannelEntry::new("events");
        (events.partitions, events.groups) = (Some(4), vec![GroupEntry::new("a"), GroupEntry::new("b")]);
        let inventory = Inventory::new([orders, events, ChannelEntry::foreign("JOBS")]);
        insta::assert_snapshot!(table(&inventory), @r"
        CHANNEL  MESSAGES  GROUP    LAG  MEMBERS  PARTITIONS
        events   -         a        -    -        4
                           b        -    -        4
        orders   200       billing  3    2        8
                           ledger   -    -        -
        JOBS*    -         -        -    -        -
        ");
    }
}
