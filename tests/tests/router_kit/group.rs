//! The embedded broker by a script: a group that keeps silent about suspects, and that writes down what it is told of them; and
//! confirms that come late, as a broker's over a network do.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use postrider::memory::MemorySubscription;
use postrider::{
    BoxFuture, ClaimId, Confirm, Control, Delivery, Health, Origin, Result, Signal, Start, Subscription,
    Suspect,
};

use super::Log;
use super::altered::Difference;

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

impl Difference for Script {
    type Subscription = ScriptedSubscription;

    fn subscription(&self, inner: MemorySubscription) -> ScriptedSubscription {
        ScriptedSubscription { inner, script: self.clone() }
    }

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
