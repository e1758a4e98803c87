//! A broker whose connection lives on a tokio runtime, and what becomes of calls when that runtime has ended.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::address::Channel;
use crate::broker::{Adapter, Declare};
use crate::capability::Capabilities;
use crate::env::Env;
use crate::error::{Error, ErrorKind, Result};
use crate::inventory::{Finding, Inventory, Scope};
use crate::publish::{Confirm, DrainReport, Outgoing, PublishError, Publisher};
use crate::subscribe::{Health, SubscribeOptions, Subscriber};

/// Notices the end of the runtime that it was made on: a task of its own is dropped then.
#[derive(Debug)]
struct RuntimeGuard {
    ended: Arc<AtomicBool>,
    task: AbortHandle,
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

impl RuntimeGuard {
    /// `None` outside of a runtime.
    fn new() -> Option<Self> {
        let runtime = Handle::try_current().ok()?;
        let ended = Arc::new(AtomicBool::new(false));
        let set = SetOnDrop(Arc::clone(&ended));
        let task = runtime.spawn(async move {
            let _set = set;
            pending::<()>().await;
        });
        Some(Self { ended, task: task.abort_handle() })
    }
}

impl Drop for RuntimeGuard {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An adapter whose calls fail at once when the runtime that it was connected on has ended. Its connection ended with that runtime, so
/// nothing would ever answer them.
#[derive(Debug)]
pub(crate) struct OnRuntime<A> {
    adapter: A,
    guard: Option<RuntimeGuard>,
}

const ENDED: &str =
    "the runtime that this broker was connected on has ended; connect again on the present one";

impl<A> OnRuntime<A> {
    pub(crate) fn new(adapter: A) -> Self {
        Self { adapter, guard: RuntimeGuard::new() }
    }

    fn has_ended(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.ended.load(Relaxed))
    }

    fn check(&self, operation: &'static str) -> Result<()> {
        if self.has_ended() { Err(ended(operation)) } else { Ok(()) }
    }
}

fn ended(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation, ENDED)
}

impl<A: Adapter> Publisher for OnRuntime<A> {
    fn env(&self) -> &Env {
        self.adapter.env()
    }

    async fn send(&self, message: Outgoing<'_>) -> Confirm {
        if self.has_ended() {
            return Confirm::failed(ended("publish"));
        }
        self.adapter.send(message).await
    }

    fn try_send<'a>(&self, message: Outgoing<'a>) -> std::result::Result<Confirm, Outgoing<'a>> {
        if self.has_ended() {
            return Ok(Confirm::failed(ended("publish")));
        }
        self.adapter.try_send(message)
    }

    async fn flush(&self) -> std::result::Result<(), PublishError> {
        // what was sent before has no outcome any more
        self.check("flush").map_err(PublishError::Unknown)?;
        self.adapter.flush().await
    }

    async fn close(&self, deadline: Instant) -> DrainReport {
        if self.has_ended() {
            return DrainReport::default();
        }
        self.adapter.close(deadline).await
    }
}

impl<A: Adapter> Subscriber for OnRuntime<A> {
    type Subscription = A::Subscription;

    async fn subscribe(&self, options: &SubscribeOptions) -> Result<Self::Subscription> {
        self.check("subscribe")?;
        self.adapter.subscribe(options).await
    }
}

impl<A: Adapter> Adapter for OnRuntime<A> {
    type Letters = A::Letters;

    fn name(&self) -> &'static str {
        self.adapter.name()
    }

    fn capabilities(&self) -> &Capabilities {
        self.adapter.capabilities()
    }

    async fn declare(&self, topology: &[Declare]) -> Result<()> {
        self.check("declare")?;
        self.adapter.declare(topology).await
    }

    async fn letters(&self, channel: &Channel) -> Result<Self::Letters> {
        self.check("letters")?;
        self.adapter.letters(channel).await
    }

    fn health(&self) -> Health {
        if self.has_ended() { Health::down(ENDED) } else { self.adapter.health() }
    }

    async fn inventory(&self, scope: &Scope) -> Result<Inventory> {
        self.check("inventory")?;
        self.adapter.inventory(scope).await
    }

    async fn examine(&self) -> Vec<Finding> {
        if self.has_ended() {
            return vec![Finding::failed("connection", ENDED, "connect again")];
        }
        self.adapter.examine().await
    }
}
