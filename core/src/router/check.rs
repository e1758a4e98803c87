//! What can be found wrong with a route before anything is sent, and the plan of one that is right.

use std::sync::Arc;
use std::time::Duration;

use crate::address::{Channel, GroupName};
use crate::capability::{Capabilities, Capability};
use crate::error::{Error, Result};
use crate::extract::{Declaration, RouteNames};
use crate::outcome::Reason;
use crate::policy::{BreakerOption, DeadLetterPolicy, OnGap, RETRY_TIERS, RouteOptions};
use crate::runner::Plan;
use crate::subscribe::{Group, Order, Start, SubscribeOptions};

/// The most partitions of a group: as many as there are key slots.
const MAX_PARTITIONS: u32 = crate::address::KEY_SLOTS;

/// The most workers of a route: more than there are cores on any machine.
const MAX_WORKERS: usize = 1024;

/// For how long a publisher may send again what had no answer.
const RESEND: Duration = Duration::from_mins(10);

/// The plan of a route.
pub(super) fn plan(options: &RouteOptions, declaration: &Declaration) -> Result<Plan> {
    let label = label(options);
    let refuse = |why: String| Err(Error::config("start", format!("{label}: {why}")));
    let channel = named(&label, "channel", Channel::new(&*options.channel))?;
    let group = match &options.group {
        Some(name) => Group::Named(named(&label, "group", GroupName::new(&**name))?),
        None => Group::Ephemeral,
    };
    if declaration.types.len() > 1 {
        return refuse(format!(
            "it takes more than one message: {}; take one, and `State` or `Meta` beside it",
            list(&declaration.types)
        ));
    }
    if declaration.publishes && options.publishes.is_none() {
        return refuse(
            "it returns or publishes messages, but no channel is said; add `publishes = \"…\"`".into(),
        );
    }
    if options.publishes.as_deref() == Some(&*options.channel) {
        return refuse(format!(
            "it publishes to `{}`, which it reads: that never ends; choose another channel",
            options.channel
        ));
    }
    if options.workers > MAX_WORKERS {
        return refuse(format!(
            "`workers` is {}, it must be at most {MAX_WORKERS}: each is a task",
            options.workers
        ));
    }
    let least_one = [
        ("concurrency", options.concurrency),
        ("workers", options.workers),
        ("max_in_flight", options.window.messages),
        ("max_in_flight_bytes", options.window.bytes),
        ("batch", options.batch),
    ];
    if let Some((name, _)) = least_one.into_iter().find(|(_, value)| *value == 0) {
        return refuse(format!("`{name}` must be at least 1"));
    }
    if options.timeout.is_zero() {
        return refuse("`timeout` must be longer than nothing".into());
    }
    if let Some(partitions) = options.partitions
        && !(partitions.is_power_of_two() && partitions <= MAX_PARTITIONS)
    {
        return refuse(format!("`partitions` is {partitions}, it must be 1, 2, 4, 8, 16, 32 or 64"));
    }
    if declaration.batch && options.batch > options.window.messages {
        return refuse(format!(
            "`batch` is {}, more than `max_in_flight` ({})",
            options.batch, options.window.messages
        ));
    }
    durable(&label, options, &group)?;
    let timeout = attempt_timeout(options);
    let dead_letter = dead_letter(&label, options, &channel, &group)?;
    let dead_letter_for = dead_letter_for(&label, options, &channel)?;
    let publishes = options.publishes.as_deref().map(Channel::new).transpose();
    let publishes = named(&label, "publishes", publishes)?;
    let mut subscribe = SubscribeOptions::new(channel, group);
    subscribe.start = options.start;
    subscribe.order = options.order;
    subscribe.partitions = options.partitions;
    subscribe.window = options.window;
    subscribe.claim_timeout = options.claim_timeout;
    subscribe.attempt_timeout = Some(timeout);
    subscribe.longest_hold = Some(options.retry.longest_hold(timeout));
    subscribe.durable_retry = options.retry.is_durable();
    subscribe.native.clone_from(&options.native);
    Ok(Plan {
        names: Arc::new(RouteNames {
            channel: options.channel.clone(),
            group: subscribe.group.to_string(),
            handler: options.name.clone().unwrap_or_else(|| subscribe.group.to_string()),
            publishes: options.publishes.clone(),
        }),
        subscribe,
        publishes,
        dead_letter,
        dead_letter_for,
        breaker: options.breaker.clone(),
        rate: options.rate.clone(),
        bulkhead: options.bulkhead.clone(),
        retry: options.retry.clone(),
        timeout,
        concurrency: options.concurrency,
        workers: options.workers,
        batch: declaration.batch.then_some(options.batch),
        idempotency: options.idempotency,
        crash_limit: options.crash_limit,
        on_expired: options.on_expired,
        on_gap: options.on_gap,
        types: declaration.types.clone(),
    })
}

/// The shorter of the route's own time-out and its breaker's.
fn attempt_timeout(options: &RouteOptions) -> Duration {
    let breaker = match &options.breaker {
        Some(BreakerOption::Own(policy)) => policy.call_timeout(),
        Some(BreakerOption::Shared(breaker)) => breaker.call_timeout(),
        None => None,
    };
    breaker.map_or(options.timeout, |timeout| timeout.min(options.timeout))
}

/// What a retry that waits at the broker can't go with.
fn durable(label: &str, options: &RouteOptions, group: &Group) -> Result<()> {
    let refuse = |why: String| Err(Error::config("start", format!("{label}: {why}")));
    if !options.retry.is_durable() {
        return Ok(());
    }
    if options.order != Order::None {
        return refuse(format!(
            "`durable` retries wait at the broker and lose their place, but `order = {}` is asked for; say `order = none`, or retry in place",
            options.order.as_str()
        ));
    }
    if *group == Group::Ephemeral {
        return refuse(
            "`durable` retries outlive the process, an ephemeral group doesn't; name a group".into(),
        );
    }
    let most = RETRY_TIERS[RETRY_TIERS.len() - 1];
    if options.retry.longest_wait() > most {
        return refuse(format!(
            "its back-off waits up to {:?}, a `durable` retry at most {most:?}; shorten it",
            options.retry.longest_wait()
        ));
    }
    Ok(())
}

fn dead_letter(
    label: &str,
    options: &RouteOptions,
    channel: &Channel,
    group: &Group,
) -> Result<Option<Channel>> {
    let refuse = |why: String| Err(Error::config("start", format!("{label}: {why}")));
    let dead_letter = match (&options.dead_letter, group.name()) {
        (DeadLetterPolicy::Channel(name), _) => Some(named(label, "dead_letter", Channel::new(&**name))?),
        (DeadLetterPolicy::Default, Some(_)) if channel.ends_with(".dlq") => {
            return refuse("it reads a dead-letter channel, so where its own failures go must be said: `dead_letter = \"…\"` or `none`".into());
        }
        (DeadLetterPolicy::Default, Some(group)) => {
            Some(named(label, "dead_letter", channel.dead_letter(group))?)
        }
        // a copy of the channel that nobody keeps has nobody who would look at its dead letters
        (DeadLetterPolicy::Default | DeadLetterPolicy::Drop, _) => None,
    };
    if dead_letter.as_ref() == Some(channel) {
        return refuse(never_ends(channel));
    }
    Ok(dead_letter)
}

fn dead_letter_for(label: &str, options: &RouteOptions, channel: &Channel) -> Result<Vec<(Reason, Channel)>> {
    let each = options.dead_letter_for.iter().map(|(reason, name)| {
        let own = named(label, "dead_letter_for", Channel::new(&**name))?;
        if own == *channel {
            return Err(Error::config("start", format!("{label}: {}", never_ends(channel))));
        }
        Ok((*reason, own))
    });
    each.collect()
}

fn never_ends(channel: &Channel) -> String {
    format!("its dead letters go to `{channel}`, which it reads: that never ends; choose another channel")
}

/// What only shows when all routes are seen together.
pub(super) fn together(plans: &[Plan]) -> Result<()> {
    for (i, plan) in plans.iter().enumerate() {
        let Some(group) = plan.subscribe.group.name() else {
            continue;
        };
        let channel = &plan.subscribe.channel;
        let same = |other: &&Plan| {
            other.subscribe.channel == *channel && other.subscribe.group == plan.subscribe.group
        };
        if let Some(other) = plans[..i].iter().find(same) {
            let message = format!(
                "the routes `{}` and `{}` both read `{channel}` for the group `{group}`, so each would get a part of the messages; give one of them another group",
                other.names.handler, plan.names.handler,
            );
            return Err(Error::config("start", message));
        }
    }
    Ok(())
}

/// What a route that handles each message once needs besides.
pub(super) fn store(plan: &Plan, has_store: bool) -> Result<()> {
    let Some(policy) = &plan.idempotency else {
        return Ok(());
    };
    let refuse = |why: String| {
        let label = format!("the route `{}` on `{}`", plan.names.handler, plan.names.channel);
        Err(Error::config("start", format!("{label}: {why}")))
    };
    if !has_store {
        return refuse("it asks for `idempotency`, but there is no store; give the router one: `.idempotency(MemoryStore::new())`".into());
    }
    if plan.subscribe.group == Group::Ephemeral {
        return refuse(
            "`idempotency` is for a group, an ephemeral one forgets with its process; name a group".into(),
        );
    }
    let least = plan.retry.worst_case(plan.timeout).saturating_add(RESEND);
    if policy.ttl < least && least == Duration::MAX {
        return refuse(format!(
            "`idempotency` remembers for {:?}, but nothing limits how long a message takes: its time-out, its waits or its attempts have no end; limit them, or remember for `Duration::MAX`",
            policy.ttl
        ));
    }
    if policy.ttl < least {
        return refuse(format!(
            "`idempotency` remembers for {:?}, but a message may come again for {least:?} (all attempts and waits, and 10 minutes of sending again); remember longer",
            policy.ttl
        ));
    }
    Ok(())
}

/// How often a message is handed out before it is suspected, unless said otherwise: by brokers that count what was handed out and given
/// back unstarted as well, and by those that count only holders that ended without leaving.
const CRASH_LIMITS: (u32, u32) = (100, 5);

/// What goes without saying where the broker can do it.
pub(super) fn defaults(plan: &mut Plan, can: &Capabilities) {
    if plan.subscribe.group.name().is_some() && can.has(Capability::CrashLoops) {
        let (all, ended) = CRASH_LIMITS;
        plan.crash_limit.get_or_insert(if can.has(Capability::DeliveryCount) { all } else { ended });
    }
}

/// What the route asks for and the broker must be able to do.
pub(super) fn capabilities(plan: &Plan, can: &Capabilities) -> Result<()> {
    let wanted = [
        (plan.subscribe.order == Order::Key, Capability::KeyOrder),
        (plan.subscribe.order == Order::Partition, Capability::PartitionOrder),
        (plan.subscribe.group == Group::Ephemeral, Capability::Ephemeral),
        (matches!(plan.subscribe.start, Start::Time(_)), Capability::StartTime),
        (plan.subscribe.durable_retry, Capability::DurableRetry),
        (plan.crash_limit.is_some(), Capability::CrashLoops),
        (plan.on_gap == OnGap::Stop, Capability::Gaps),
    ];
    for (_, capability) in wanted.into_iter().filter(|(asked, _)| *asked) {
        can.require(capability, "start").map_err(|error| error.with("route", &plan.names.handler))?;
    }
    Ok(())
}

/// How long one message can take in the worst case.
pub(super) fn worst_case(plan: &Plan) -> Duration {
    plan.retry.worst_case(plan.timeout)
}

fn label(options: &RouteOptions) -> String {
    let name = options.name.as_deref().or(options.group.as_deref()).unwrap_or("(ephemeral)");
    format!("the route `{name}` on `{}`", options.channel)
}

fn named<T>(label: &str, option: &str, name: Result<T>) -> Result<T> {
    name.map_err(|error| Error::config("start", format!("{label}: its {option} is wrong")).because(error))
}

fn list(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
