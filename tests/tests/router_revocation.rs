//! A claim that is to be given up: what runs under it ends, nothing new starts under it, and only then is it let go.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test says what it expects")]

mod router_kit;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use postrider::memory::MemorySubscription;
use postrider::prelude::*;
use postrider::{ClaimId, Control, Delivery, Result, RouteOptions, Signal, Subscription};
use router_kit::altered::{Altered, Difference};
use router_kit::{Log, Placed, broker_with, finish, placed};
use tokio::sync::Notify;

/// The embedded broker never takes a claim away; this one does after the first delivery: whoever else there is hears of it when another
/// message is on its way already.
#[derive(Clone, Debug)]
struct Greedy {
    released: Log<ClaimId>,
    /// It goes on as it comes after the second delivery, whether the claim is released or not.
    is_hasty: bool,
}

impl Difference for Greedy {
    type Subscription = GreedySubscription;

    fn subscription(&self, inner: MemorySubscription) -> GreedySubscription {
        let (released, is_hasty) = (self.released.clone(), self.is_hasty);
        GreedySubscription { inner, released, is_hasty, next: Next::First }
    }
}

#[derive(Clone, Copy, Debug)]
enum Next {
    First,
    Revocation(ClaimId),
    /// Deliveries as they come, but none before the claim is released once the second has come.
    Second,
    Rest,
}

#[derive(Debug)]
struct GreedySubscription {
    inner: MemorySubscription,
    released: Log<ClaimId>,
    is_hasty: bool,
    next: Next,
}

impl Subscription for GreedySubscription {
    async fn receive(&mut self, max: NonZeroUsize, into: &mut Vec<Delivery>) -> Result<Signal> {
        if let Next::Revocation(claim) = self.next {
            self.next = Next::Second;
            return Ok(Signal::Revoking(vec![claim]));
        }
        if let Next::Rest = self.next
            && !self.is_hasty
            && self.released.all().is_empty()
        {
            return std::future::pending().await;
        }
        let max = if let Next::Rest = self.next { max } else { NonZeroUsize::MIN };
        let signal = self.inner.receive(max, into).await?;
        if let Some(delivery) = into.last() {
            self.next = match self.next {
                Next::First => Next::Revocation(delivery.claim_id()),
                _ => Next::Rest,
            };
        }
        Ok(signal)
    }

    async fn release(&mut self, claims: &[ClaimId]) -> Result<()> {
        for claim in claims {
            self.released.add(*claim);
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<()> {
        self.inner.close().await
    }

    fn control(&self) -> Arc<dyn Control> {
        self.inner.control()
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_under_a_claim_that_is_to_be_given_up_and_it_goes_when_nothing_runs_under_it() {
    for workers in [1, 2] {
        let (inner, _) = broker_with(&[placed("ann", 1), placed("bob", 2), placed("cem", 3)]).await;
        let released = Log::default();
        let broker = Broker::new(Altered {
            inner,
            difference: Greedy { released: released.clone(), is_hasty: false },
        });
        let (runs, go) = (Log::default(), Arc::new(Notify::new()));
        let (log, wait) = (runs.clone(), Arc::clone(&go));
        let handler = move |order: Placed| {
            log.add(order.number);
            let wait = Arc::clone(&wait);
            async move {
                if order.number == 1 {
                    wait.notified().await;
                }
            }
        };
        let options = RouteOptions::new("orders", "billing").name("bill").workers(workers);
        let service = Router::new().route(options.handle(handler)).start(&broker).await.unwrap();
        // bob's message is there, and would have begun by now
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((runs.all(), released.all().len()), (vec![1], 0), "{workers} workers");
        go.notify_one();
        let report = finish(service).await;
        assert_eq!((runs.all(), released.all().len()), (vec![1, 2, 3], 1), "{workers} workers");
        assert_eq!((report.handled, report.dead_lettered), (3, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_lost_before_it_is_given_up_leaves_nothing_behind() {
    for workers in [1, 2] {
        let (inner, _) = broker_with(&[placed("ann", 1), placed("bob", 2), placed("cem", 3)]).await;
        let released = Log::default();
        let broker = Broker::new(Altered {
            inner: inner.clone(),
            difference: Greedy { released: released.clone(), is_hasty: true },
        });
        let runs = Log::default();
        let log = runs.clone();
        let handler = move |order: Placed, meta: Meta| {
            log.add((order.number, meta.deliveries()));
            let hangs = order.number == 1 && meta.deliveries() == Some(1);
            async move {
                if hangs {
                    std::future::pending::<()>().await;
                }
            }
        };
        let options = RouteOptions::new("orders", "billing").name("bill").workers(workers);
        let service = Router::new().route(options.handle(handler)).start(&broker).await.unwrap();
        // ann's runs, the others are kept back
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((runs.all(), released.all().len()), (vec![(1, Some(1))], 0), "{workers} workers");
        inner.disconnect();
        let report = finish(service).await;
        let mut again = runs.all().split_off(1);
        again.sort_unstable();
        assert_eq!(again, [(1, Some(2)), (2, Some(2)), (3, Some(2))], "{workers} workers");
        assert_eq!((report.handled, report.given_back, report.cancelled), (3, 3, 1), "{workers} workers");
    }
}
