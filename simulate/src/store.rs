//! The idempotency store of a simulated service: core's own in memory, which outlives every life; at times slow, at times not to be
//! reached.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use postrider_core::{
    BoxFuture, End, Ending, Error, ErrorKind, IdempotencyStore, MemoryStore, Reserve, Reserved, Result,
};

use crate::bug::Bug;
use crate::dice::Dice;
use crate::history::{Event, World};
use crate::scenario::Scenario;

pub(crate) struct WatchedStore {
    inner: MemoryStore,
    world: World,
    dice: Mutex<Dice>,
    fails: u64,
    slow: u64,
    bug: Option<Bug>,
}

impl WatchedStore {
    pub(crate) fn new(scenario: &Scenario, world: World, bug: Option<Bug>) -> Self {
        Self {
            inner: MemoryStore::with(world.env().clone(), 1_000_000),
            dice: Mutex::new(Dice::new(scenario.seed, 7)),
            fails: scenario.chances.store_fails,
            slow: scenario.chances.store_slow,
            world,
            bug,
        }
    }

    /// Whether the call fails before or after it had its effect, and how long it takes.
    fn roll(&self) -> (bool, bool, Duration) {
        let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
        let slow = if dice.happens(self.slow) { dice.between(1, 60) } else { 0 };
        (dice.happens(self.fails), dice.happens(self.fails), Duration::from_millis(slow))
    }

    async fn takes(&self, time: Duration) {
        if !time.is_zero() {
            self.world.env().sleep(time).await;
        }
    }

    fn unreachable(&self, operation: &'static str) -> Error {
        self.world.tell(Event::StoreFailed);
        Error::new(ErrorKind::Broker, operation, "the store can't be reached").temporary(true)
    }
}

impl IdempotencyStore for WatchedStore {
    fn reserve<'a>(&'a self, requests: &'a [Reserve]) -> BoxFuture<'a, Result<Vec<Reserved>>> {
        Box::pin(async move {
            let (before, after, time) = self.roll();
            if before {
                return Err(self.unreachable("reserve"));
            }
            let answers = self.inner.reserve(requests).await;
            self.takes(time).await;
            if after { Err(self.unreachable("reserve")) } else { answers }
        })
    }

    fn end<'a>(&'a self, endings: &'a [End]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (before, after, time) = self.roll();
            self.takes(time).await;
            if before {
                return Err(self.unreachable("end"));
            }
            for end in endings {
                let (group, number) = parts(end.identity.as_bytes());
                self.world.tell(Event::StoreTold { group, number, how: word(end.how).to_owned() });
                let mut end = end.clone();
                if self.bug == Some(Bug::CompletedForgotten) && matches!(end.how, Ending::Completed(_)) {
                    end.how = Ending::Released;
                }
                self.inner.end(&[end]).await?;
            }
            if after { Err(self.unreachable("end")) } else { Ok(()) }
        })
    }
}

fn word(how: Ending) -> &'static str {
    match how {
        Ending::Completed(_) => "completed",
        Ending::DeadLettered(..) => "dead-lettered",
        _ => "released",
    }
}

/// The group and the number in an identity, whose last part is the message's id or key: `n17`.
fn parts(identity: &[u8]) -> (String, u64) {
    let (mut rest, mut parts) = (identity, Vec::new());
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let Some((part, tail)) = tail.split_at_checked(u32::from_be_bytes(*length) as usize) else { break };
        parts.push(String::from_utf8_lossy(part).into_owned());
        rest = tail;
    }
    let number = parts.last().and_then(|last| last.strip_prefix('n')?.parse().ok()).unwrap_or(u64::MAX);
    (parts.first().cloned().unwrap_or_default(), number)
}
