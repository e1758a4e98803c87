//! What a group is asked and told of suspects: at times slow, at times not to be reached when it is asked.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postrider_core::{BoxFuture, ClaimId, Control, Error, ErrorKind, Health, Origin, Result, Start, Suspect};

use crate::dice::Dice;
use crate::history::World;
use crate::scenario::{Chances, Scenario};

/// A subscription's control, but for that.
pub(crate) struct SlowGroup {
    inner: Arc<dyn Control>,
    world: World,
    chances: Chances,
    dice: Mutex<Dice>,
}

impl fmt::Debug for SlowGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlowGroup").finish_non_exhaustive()
    }
}

impl SlowGroup {
    pub(crate) fn new(scenario: &Scenario, world: World, group: &str, inner: Arc<dyn Control>) -> Self {
        // of each member's group by itself
        let number: u64 = group.bytes().map(u64::from).sum();
        let dice = Mutex::new(Dice::new(scenario.seed, 600_000 + 1_000 * number + u64::from(world.member())));
        Self { inner, world, chances: scenario.chances, dice }
    }

    /// Whether the call fails, after it took its time.
    async fn takes_time(&self) -> bool {
        let (fails, time) = {
            let mut dice = self.dice.lock().unwrap_or_else(PoisonError::into_inner);
            let time = if dice.happens(self.chances.group_slow) { dice.between(1, 60) } else { 0 };
            (dice.happens(self.chances.group_fails), Duration::from_millis(time))
        };
        if !time.is_zero() {
            self.world.env().sleep(time).await;
        }
        fails
    }
}

impl Control for SlowGroup {
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
        Box::pin(async move {
            if self.takes_time().await {
                return Err(
                    Error::new(ErrorKind::Broker, "strikes", "the group can't be asked").temporary(true)
                );
            }
            self.inner.strikes(suspect).await
        })
    }

    fn set_strikes(&self, suspect: Suspect, strikes: u32) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            // what the group can't be told counts once too often, which is no promise that is broken: so it can be told
            self.takes_time().await;
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
