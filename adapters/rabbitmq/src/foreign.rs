//! Somebody else's queues and exchanges, named by a route's or a message's own properties. They are used as they are: nothing of them
//! is declared, bound or altered.

use postrider_core::{Error, Order, Outgoing, Result, SubscribeOptions};

/// A route reads this queue.
const QUEUE: &str = "queue";
/// A message goes to this exchange.
const EXCHANGE: &str = "exchange";
/// … with this routing key.
const ROUTING_KEY: &str = "routing_key";

/// The queue that a subscription names, if it does.
pub(crate) fn queue(options: &SubscribeOptions) -> Result<Option<String>> {
    let mut queue = None;
    for (name, value) in &options.native {
        if name != QUEUE || value.is_empty() {
            let message = "the RabbitMQ adapter takes one property of a subscription, `queue`: the name of an existing queue";
            return Err(Error::config("subscribe", message).with("property", name));
        }
        queue = Some(value.clone());
    }
    let refuse = |message: &str| {
        Err(Error::config("subscribe", message).with("queue", queue.as_deref().unwrap_or_default()))
    };
    match &queue {
        None => Ok(None),
        Some(_) if options.group.name().is_none() => {
            refuse("an existing queue is shared by all who read it, an ephemeral group is not; name a group")
        }
        Some(_) if options.order != Order::None => {
            refuse("an existing queue keeps no order of keys among those who read it; say `order = none`")
        }
        Some(_) if options.durable_retry => {
            refuse("an existing queue has nowhere for messages to wait; retry in place, without `durable`")
        }
        Some(_) => Ok(queue),
    }
}

/// Where a message is to go instead of its channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) exchange: Option<String>,
    pub(crate) routing_key: Option<String>,
}

impl Destination {
    /// What the message's own properties say.
    pub(crate) fn of(message: &Outgoing<'_>) -> Result<Self> {
        let mut destination = Self::default();
        for (name, value) in &message.options.native {
            match name.as_str() {
                EXCHANGE => destination.exchange = Some(value.clone()),
                ROUTING_KEY => destination.routing_key = Some(value.clone()),
                _ => {
                    let text = "the RabbitMQ adapter takes two properties of a message, `exchange` and `routing_key`";
                    return Err(Error::config("publish", text).with("property", name));
                }
            }
        }
        if destination != Self::default() && message.address.group().is_some() {
            let text = "a message to one group goes by the group's own exchange; leave `exchange` and `routing_key` out";
            return Err(Error::config("publish", text));
        }
        Ok(destination)
    }
}
