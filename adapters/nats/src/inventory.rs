//! What stands at the server: streams as channels, durable consumers as groups; and what this connection may do there.

use std::collections::BTreeMap;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{self, PriorityPolicy};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream;
use futures_util::TryStreamExt;
use postrider_core::{Capability, ChannelEntry, ErrorKind, Finding, GroupEntry, Inventory, Result, Scope};

use crate::broker::NatsBroker;
use crate::error;
use crate::naming::Naming;

/// The streams of `scope` that are there.
pub(crate) async fn read(broker: &NatsBroker, scope: &Scope) -> Result<Inventory> {
    let (js, naming) = (broker.topology().js(), broker.topology().naming());
    let mut channels = Vec::new();
    match scope {
        Scope::Everything => {
            let streams: Vec<_> =
                js.streams().try_collect().await.map_err(|e| error::request("inventory", e))?;
            for info in streams {
                let entry = match naming.channel(&info.config.name) {
                    Some(channel) => ChannelEntry::new(&*channel),
                    // with a tenant, what is others' is nobody's business here
                    None if broker.config().tenant.is_some() => continue,
                    None => ChannelEntry::foreign(&info.config.name),
                };
                channels.push(filled(js, naming, entry, &info).await?);
            }
        }
        Scope::These(wanted) => {
            for (channel, groups) in wanted {
                let Some(info) = stream(js, &naming.stream(channel)?).await? else { continue };
                let mut entry = filled(js, naming, ChannelEntry::new(&**channel), &info).await?;
                entry.groups.retain(|entry| groups.iter().any(|group| **group == *entry.group));
                channels.push(entry);
            }
        }
    }
    Ok(Inventory::new(channels))
}

async fn stream(js: &Context, name: &str) -> Result<Option<stream::Info>> {
    match js.get_stream(name).await {
        Ok(stream) => Ok(Some(stream.cached_info().clone())),
        Err(e) => match e.kind() {
            GetStreamErrorKind::JetStream(answer) => {
                let error = error::api("inventory", &answer).with("stream", name);
                if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) }
            }
            _ => Err(error::request("inventory", e).with("stream", name)),
        },
    }
}

/// With what the stream keeps and who reads it.
async fn filled(
    js: &Context,
    naming: &Naming,
    mut entry: ChannelEntry,
    info: &stream::Info,
) -> Result<ChannelEntry> {
    let name = &info.config.name;
    let failed = |e| error::request("inventory", e).with("stream", name);
    let stream = js.get_stream_no_info(name).await;
    let stream = stream.map_err(|e| error::request("inventory", e).with("stream", name))?;
    let consumers: Vec<consumer::Info> = stream.consumers().try_collect().await.map_err(failed)?;
    let mut groups: BTreeMap<String, GroupEntry> = BTreeMap::new();
    for consumer in consumers {
        // a consumer that isn't durable is one member's own copy
        if consumer.config.durable_name.is_none() {
            continue;
        }
        let group = match naming.group(&entry.channel, &consumer.name) {
            Some(group) if !entry.foreign => group.to_string(),
            _ => consumer.name.clone(),
        };
        let found = groups.entry(group.clone()).or_insert_with(|| GroupEntry::new(group));
        let lag = consumer.num_pending + consumer.num_ack_pending as u64;
        found.lag = Some(found.lag.unwrap_or_default() + lag);
        if consumer.config.priority_policy == PriorityPolicy::PinnedClient {
            found.partitions = Some(found.partitions.unwrap_or_default() + 1);
        }
    }
    entry.messages = Some(info.state.messages);
    entry.groups = groups.into_values().collect();
    Ok(entry)
}

/// What the server is, and what it lets this connection do.
pub(crate) async fn examine(broker: &NatsBroker) -> Vec<Finding> {
    let info = broker.connection().client.server_info();
    let js = broker.topology().js();
    let mut found =
        vec![Finding::ok("server", format!("nats-server {} ({})", info.version, info.server_name))];
    found.push(if broker.connection().client.is_server_compatible(2, 11, 0) {
        Finding::ok("order per key", "consumers can be pinned (2.11 and newer)")
    } else {
        Finding::failed(
            "order per key",
            "consumers can't be pinned",
            "use nats-server 2.11 or newer, or `order = none`",
        )
    });
    found.push(if postrider_core::Adapter::capabilities(broker).has(Capability::DurableRetry) {
        Finding::ok("durable retries", "messages can be scheduled (2.12 and newer)")
    } else {
        let next = "use nats-server 2.12 or newer, or retry in place";
        Finding::warning("durable retries", "messages can't be scheduled", next)
    });
    let usable = postrider_core::Adapter::capabilities(broker).usable_payload();
    found.push(Finding::ok(
        "largest body",
        format!("{usable} bytes (the server takes {} with headers)", info.max_payload),
    ));
    match js.query_account().await {
        Ok(account) => {
            let text = format!("on, {} streams and {} consumers", account.streams, account.consumers);
            found.push(Finding::ok("JetStream", text));
            let (used, limit) = (account.storage, account.limits.max_storage.unwrap_or(-1));
            if limit > 0 {
                let text = format!("{used} of {limit} bytes used");
                found.push(if used.saturating_mul(10) >= (limit as u64).saturating_mul(9) {
                    Finding::warning("storage", text, "raise the account's `max_storage`, or delete streams")
                } else {
                    Finding::ok("storage", text)
                });
            }
        }
        Err(e) => {
            let next = "start the server with `-js`, enable JetStream for the account, or allow `$JS.API.>` to the user";
            found.push(Finding::failed("JetStream", error::request("examine", e).to_string(), next));
        }
    }
    found.push(match js.stream_names().try_next().await {
        Ok(_) => Finding::ok("permission to list", "streams can be listed"),
        Err(e) => {
            let next = "allow `$JS.API.STREAM.>` and `$JS.API.CONSUMER.>` to the user";
            Finding::warning("permission to list", format!("streams can't be listed: {e}"), next)
        }
    });
    found
}
