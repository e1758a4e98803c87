//! The embedded broker by a script: a group that keeps silent about suspects, and that writes down what it is told of them; and
//! confirms that come late, as a broker's over a network do.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use postrider::memory::{MemoryBroker, MemorySubscription};
use postrider::{
    Adapter, BoxFuture, Capabilities, Channel, ClaimId, Confirm, Control, Declare, Delivery, DrainReport,
    Env, Finding, Health, Inventory, Origin, Outgoing, PublishError, Publisher, Result, Scope, Signal, Start,
    SubscribeOptions, Subscriber, Subscription, Suspect,
};

use super::Log;

/// What it does when it is asked.
#[derive(Clone, Default)]
pub(crate) struct Script {
    /// Who asks how often a suspect was begun gets no answer.
    pub(crate) silent: Arc<AtomicBool>,
    /// Who says that a suspect has ended gets no answer.
    pub(crate) deaf: Arc<AtomicBool>,
    /// What it was told.
    pub(crate) told: Log<u32>,
    /// So many seconds after a message was handed over its confirm comes.
    pub(crate) confirms_after: Arc<AtomicU64>,
    /// How many messages were handed over meanwhile.
    pub(crate) sent: Arc<AtomicU64>,
}

impl Script {
    fn confirm(&self, known: Confirm) -> Confirm {
        let seconds = self.confirms_after.load(SeqCst);
        if seconds == 0 {
            return known;
        }
        self.sent.fetch_add(1, SeqCst);
        Confirm::boxed(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            known.await
        })
    }
}

/// The broker.
#[derive(Clone)]
pub(crate) struct Scripted {
    pub(crate) inner: MemoryBroker,
    pub(crate) script: Script,
}

impl Publisher for Scripted {
    fn env(&self) -> &Env {
        self.inner.env()
    }

    async fn send(&self, message: Outgoing<'_>) -> Confirm {
        self.script.confirm(self.inner.send(message).await)
    }

    fn try_send<'a>(&self, message: Outgoing<'a>) -> std::result::Result<Confirm, Outgoing<'a>> {
        self.inner.try_send(message).map(|confirm| self.script.confirm(confirm))
    }

    async fn flush(&self) -> std::result::Result<(), PublishError> {
        self.inner.flush().await
    }

    async fn close(&self, deadline: Instant) -> DrainReport {
        self.inner.close(deadline).await
    }
}

impl Subscriber for Scripted {
    type Subscription = ScriptedSubscription;

    async fn subscribe(&self, options: &SubscribeOptions) -> Result<ScriptedSubscription> {
        Ok(ScriptedSubscription { inner: self.inner.subscribe(options).await?, script: self.script.clone() })
    }
}

impl Adapter for Scripted {
    type Letters = <MemoryBroker as Adapter>::Letters;

    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn declare(&self, topology: &[Declare]) -> Result<()> {
        self.inner.declare(topology).await
    }

    fn health(&self) -> Health {
        self.inner.health()
    }

    async fn letters(&self, channel: &Channel) -> Result<Self::Letters> {
        self.inner.letters(channel).await
    }

    async fn inventory(&self, scope: &Scope) -> Result<Inventory> {
        self.inner.inventory(scope).await
    }

    async fn examine(&self) -> Vec<Finding> {
        self.inner.examine().await
    }
}

pub(crate) struct ScriptedSubscription {
    inner: MemorySubscription,
    script: Script,
}

impl Subscription for ScriptedSubscription {
    async fn receive(&mut self, max: NonZeroUsize, into: &mut Vec<Delivery>) -> Result<Signal> {
        self.inner.receive(max, into).await
    }

    async fn release(&mut self, claims: &[ClaimId]) -> Result<()> {
        self.inner.release(claims).await
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }

    fn control(&self) -> Arc<dyn Control> {
        Arc::new(ScriptedControl { inner: self.inner.control(), script: self.script.clone() })
    }
}

struct ScriptedControl {
    inner: Arc<dyn Control>,
    script: Script,
}

impl Control for ScriptedControl {
    fn pause(&self) {
        self.inner.pause();
    }

    fn resume(&self) {
        self.inner.resume();
    }

    fn seek(&self, to: Start) -> BoxFuture<'_, Result<()>> {
        self.inner.seek(to)
    }

    fn lag(&self) -> BoxFuture<'_, Result<u64>> {
        self.inner.lag()
    }

    fn strikes(&self, suspect: Suspect) -> BoxFuture<'_, Result<u32>> {
        if self.script.silent.load(SeqCst) {
            return Box::pin(std::future::pending());
        }
        self.inner.strikes(suspect)
    }

    fn set_strikes(&self, suspect: Suspect, strikes: u32) -> BoxFuture<'_, Result<()>> {
        if strikes == 0 && self.script.deaf.load(SeqCst) {
            return Box::pin(std::future::pending());
        }
        let log = self.script.told.clone();
        Box::pin(async move {
            log.add(strikes);
            self.inner.set_strikes(suspect, strikes).await
        })
    }

    fn claims(&self) -> Vec<ClaimId> {
        self.inner.claims()
    }

    fn describe(&self, origin: Origin) -> String {
        self.inner.describe(origin)
    }

    fn health(&self) -> Health {
        self.inner.health()
    }
}
