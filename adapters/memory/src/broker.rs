//! The embedded broker: its channels, what it can do, and how it ends.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use postrider_core::{
    Adapter, Capabilities, Capability, Confirm, Declare, DrainReport, Env, Error, ErrorKind, Finding, Health,
    Inventory, Result, Scope,
};

use crate::channel::Channel;
use crate::config::MemoryConfig;
use crate::faults::FaultPlan;
use crate::inventory;
use crate::letters::MemoryLetters;
use crate::publisher::{Outcome, closed};
use crate::settle::Timers;
use crate::subscriber::declare_group;

/// How long a send may wait for room, unless it says otherwise.
pub(crate) const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// The embedded broker. Clones share its channels; when the last one and the last subscription are gone, so are they.
#[derive(Clone, Debug)]
pub struct MemoryBroker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    env: Env,
    config: MemoryConfig,
    capabilities: Capabilities,
    channels: RwLock<HashMap<Arc<str>, Arc<Channel>, foldhash::fast::RandomState>>,
    faults: Option<FaultPlan>,
    failures: AtomicUsize,
    timers: Timers,
    closed: AtomicBool,
    confirmed: AtomicU64,
    failed: AtomicU64,
    unknown: AtomicU64,
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryBroker {
    /// A broker with the default bounds, on the machine's clock.
    pub fn new() -> Self {
        Self::with(MemoryConfig::default(), Env::system())
    }

    /// A broker with bounds and an environment of its own.
    pub fn with(config: MemoryConfig, env: Env) -> Self {
        Self::build(config, env, None)
    }

    /// A broker that misbehaves as planned.
    pub fn with_faults(config: MemoryConfig, env: Env, faults: FaultPlan) -> Self {
        Self::build(config, env, Some(faults))
    }

    fn build(config: MemoryConfig, env: Env, faults: Option<FaultPlan>) -> Self {
        let capabilities = [
            Capability::KeyOrder,
            Capability::PartitionOrder,
            Capability::Ephemeral,
            Capability::Replay,
            Capability::StartTime,
            Capability::Delay,
            Capability::GroupAddress,
            Capability::CrashLoops,
            Capability::DurableRetry,
            Capability::DeliveryCount,
            Capability::Seek,
            Capability::Lag,
            Capability::Inventory,
            Capability::Letters,
        ]
        .into_iter()
        .fold(Capabilities::new(config.max_payload), Capabilities::with);
        Self(Arc::new(Inner {
            env,
            config,
            capabilities,
            channels: RwLock::default(),
            faults,
            failures: AtomicUsize::new(0),
            timers: Timers::new(),
            closed: AtomicBool::new(false),
            confirmed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
        }))
    }

    /// Every subscription loses its claims, as if its connection had been cut, and gets new ones. For tests.
    pub fn disconnect(&self) {
        let channels = self.0.channels.read().unwrap_or_else(PoisonError::into_inner);
        // by name, so that a run can be repeated
        let channels: BTreeMap<_, _> = channels.iter().collect();
        for channel in channels.into_values() {
            channel.disconnect();
        }
    }

    /// The next `count` publishes are refused. For tests.
    pub fn fail_publishes(&self, count: usize) {
        self.0.failures.store(count, Relaxed);
    }

    /// How many messages a channel keeps now: unsettled ones, and settled ones that room wasn't needed for.
    pub fn kept(&self, channel: &str) -> usize {
        self.channel(channel).map_or(0, |channel| channel.kept())
    }

    pub(crate) fn environment(&self) -> &Env {
        &self.0.env
    }

    pub(crate) fn config(&self) -> &MemoryConfig {
        &self.0.config
    }

    pub(crate) fn timers(&self) -> &Timers {
        &self.0.timers
    }

    pub(crate) fn faults(&self) -> Option<&FaultPlan> {
        self.0.faults.as_ref()
    }

    pub(crate) fn has_failures(&self) -> bool {
        self.0.failures.load(Relaxed) > 0
    }

    pub(crate) fn take_failure(&self) -> bool {
        self.0.failures.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1)).is_ok()
    }

    pub(crate) fn channel(&self, name: &str) -> Option<Arc<Channel>> {
        self.0.channels.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// All channels there are, in no order.
    pub(crate) fn channels(&self) -> Vec<Arc<Channel>> {
        self.0.channels.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn channel_or_create(&self, name: &str) -> Arc<Channel> {
        if let Some(channel) = self.channel(name) {
            return channel;
        }
        let mut channels = self.0.channels.write().unwrap_or_else(PoisonError::into_inner);
        let channel = channels
            .entry(name.into())
            .or_insert_with(|| Arc::new(Channel::new(name, self.0.config.bound_of(name))));
        Arc::clone(channel)
    }

    pub(crate) fn check_open(&self, operation: &'static str) -> Result<()> {
        if self.0.closed.load(Relaxed) { Err(closed(operation)) } else { Ok(()) }
    }

    pub(crate) fn count(&self, confirm: Confirm, outcome: Outcome) -> Confirm {
        let counter = match outcome {
            Outcome::Confirmed => &self.0.confirmed,
            Outcome::Failed => &self.0.failed,
            Outcome::Unknown => &self.0.unknown,
        };
        counter.fetch_add(1, Relaxed);
        confirm
    }

    pub(crate) fn drain_report(&self) -> DrainReport {
        let mut report = DrainReport::default();
        report.confirmed = self.0.confirmed.load(Relaxed);
        report.failed = self.0.failed.load(Relaxed);
        report.unknown = self.0.unknown.load(Relaxed);
        report
    }

    pub(crate) fn end(&self) {
        self.0.closed.store(true, Relaxed);
        self.0.timers.end();
        let channels = self.0.channels.read().unwrap_or_else(PoisonError::into_inner);
        channels.values().for_each(|channel| channel.close());
    }
}

impl Adapter for MemoryBroker {
    type Letters = MemoryLetters;

    fn name(&self) -> &'static str {
        "memory"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.0.capabilities
    }

    async fn declare(&self, topology: &[Declare]) -> Result<()> {
        self.check_open("declare")?;
        for declare in topology {
            match declare {
                Declare::Channel(channel) | Declare::DeadLetters(channel) => {
                    drop(self.channel_or_create(channel));
                }
                Declare::Group(options) => declare_group(self, options),
                other => {
                    let message = "the embedded broker doesn't know this kind of topology";
                    return Err(Error::new(ErrorKind::Unsupported, "declare", message)
                        .with("topology", format!("{other:?}")));
                }
            }
        }
        Ok(())
    }

    async fn letters(&self, channel: &postrider_core::Channel) -> Result<MemoryLetters> {
        MemoryLetters::open(self, channel)
    }

    fn health(&self) -> Health {
        if self.0.closed.load(Relaxed) { Health::down("the broker is closed") } else { Health::up() }
    }

    async fn inventory(&self, scope: &Scope) -> Result<Inventory> {
        self.check_open("inventory")?;
        Ok(inventory::read(self, scope))
    }

    async fn examine(&self) -> Vec<Finding> {
        inventory::examine(self)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.timers.end();
    }
}
