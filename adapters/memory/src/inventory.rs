//! What stands at the embedded broker: this process's channels and groups.

use postrider_core::{Finding, Inventory, Scope};

use crate::broker::MemoryBroker;

/// The channels of `scope` that are there.
pub(crate) fn read(broker: &MemoryBroker, scope: &Scope) -> Inventory {
    match scope {
        Scope::Everything => Inventory::new(broker.channels().iter().map(|channel| channel.entry())),
        Scope::These(wanted) => Inventory::new(wanted.iter().filter_map(|(channel, groups)| {
            let mut entry = broker.channel(channel)?.entry();
            entry.groups.retain(|entry| groups.iter().any(|group| **group == *entry.group));
            Some(entry)
        })),
    }
}

/// There is no server, so there is little to look at.
pub(crate) fn examine(broker: &MemoryBroker) -> Vec<Finding> {
    let bounds = broker.config();
    let found =
        format!("embedded: {} messages and {} bytes a channel", bounds.max_messages, bounds.max_bytes);
    vec![Finding::ok("server", found)]
}
