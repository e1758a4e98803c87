//! The loop of one route: receive, dispatch, settle, until it is told to stop. What is decided stands in `dispatcher`.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::task::coop::has_budget_remaining;
use tokio::task::yield_now;

use super::admission::Admission;
use super::crew::Orders;
use super::dispatcher::Dispatcher;
use super::events;
use super::plan::Plan;
use super::report::Status;
use super::stop::StopOrder;
use crate::broker::BoxSubscription;
use crate::delivery::Delivery;
use crate::error::{Error, ErrorKind, Result};
use crate::policy::OnGap;
use crate::settle::Settle;
use crate::subscribe::{Signal, Subscription};

/// The most deliveries that one call of `receive` brings.
const BATCH: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// After so many deliveries others have their turn on the thread, once what came with them is begun.
const TURN: usize = 64;

/// How long an idempotency store may take to hear what is given back, and the group what ran alone.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a route ended.
#[derive(Debug)]
pub(crate) struct RouteEnd {
    pub(crate) drained: bool,
    pub(crate) result: Result<()>,
}

/// Runs a route until it is stopped or its subscription ends.
pub(crate) async fn run(
    plan: Arc<Plan>,
    orders: Orders,
    admission: Option<Admission>,
    mut subscription: BoxSubscription,
    status: Arc<Status>,
    stop: StopOrder,
) -> RouteEnd {
    let mut dispatcher = Dispatcher::new(&plan, &orders, &status, subscription.control(), admission, &stop);
    let mut tracker: Option<Arc<dyn Settle>> = None;
    let result =
        serve(&plan, &orders, &mut dispatcher, &mut subscription, &status, &stop, &mut tracker).await;
    dispatcher.stop();
    let deadline = stop.deadline.get().copied().unwrap_or_else(|| orders.env.deadline(plan.timeout));
    let drained = finish(&orders, &mut dispatcher, &mut subscription, deadline).await;
    let given_back = dispatcher.give_all_back();
    tokio::select! {
        biased;
        () = poll_fn(|cx| dispatcher.poll_copies(cx)) => {}
        // what the store wasn't told lapses there by itself, and what the group wasn't counts too often
        () = orders.env.sleep(FAREWELL) => dispatcher.cancel_all(),
    }
    // what the store has heard of is acknowledged
    dispatcher.settle();
    if let Some(tracker) = tracker {
        // stale ones come again by themselves
        let _ = tracker.flush().await;
    }
    let closed = subscription.close().await;
    events::drained(&plan.names, given_back, drained);
    RouteEnd { drained, result: result.and(closed) }
}

async fn serve(
    plan: &Plan,
    orders: &Orders,
    dispatcher: &mut Dispatcher<'_>,
    subscription: &mut BoxSubscription,
    status: &Status,
    stop: &StopOrder,
    tracker: &mut Option<Arc<dyn Settle>>,
) -> Result<()> {
    let mut inbox: Vec<Delivery> = Vec::with_capacity(BATCH.get());
    let mut others = pin!(orders.isolation.changed());
    let mut turn = 0;
    loop {
        let due = dispatcher.next_due();
        let signal = tokio::select! {
            biased;
            () = stop.token.cancelled() => break,
            () = poll_fn(|cx| dispatcher.poll_ended(cx)) => None,
            () = wait_until(orders, due), if due.is_some() => None,
            // one of them runs a message alone, or has done so
            () = others.as_mut() => {
                others.set(orders.isolation.changed());
                None
            }
            // also while a dead letter stalls the route: the window bounds what comes, and claims that end must be noticed
            signal = subscription.receive(BATCH, &mut inbox) => Some(signal),
        };
        dispatcher.tick();
        dispatcher.wake_due();
        turn += inbox.len().max(1);
        if let Some(first) = inbox.first() {
            *tracker = first.claim.tracker().cloned();
            poll_fn(|cx| {
                dispatcher.arrived(&mut inbox, cx);
                Poll::Ready(())
            })
            .await;
            dispatcher.settle();
        } else {
            pump(dispatcher).await;
        }
        let mut claims_end = false;
        match signal {
            None | Some(Ok(Signal::Deliveries | Signal::Assigned(_))) => {}
            Some(Ok(Signal::Reconnected)) => events::reconnected(&plan.names),
            Some(Ok(Signal::Lost(claims))) => {
                dispatcher.lost(&claims);
                claims_end = true;
            }
            Some(Ok(Signal::Revoking(claims))) => {
                dispatcher.revoke(claims);
                claims_end = true;
            }
            Some(Ok(Signal::Gap(gap))) => {
                events::gap(&plan.names, gap.from, gap.to);
                status.missed.fetch_add(gap.to.saturating_sub(gap.from), Relaxed);
                if plan.on_gap == OnGap::Stop {
                    let message =
                        "retention removed messages before they were read, and the route is to stop then";
                    return Err(Error::new(ErrorKind::Broker, "receive", message)
                        .with("channel", &plan.names.channel)
                        .with("missing", format!("{}..{}", gap.from, gap.to)));
                }
            }
            Some(Ok(Signal::Closed)) => {
                let message = "the broker ended the subscription; connect and start again";
                return Err(
                    Error::new(ErrorKind::Closed, "receive", message).with("channel", &plan.names.channel)
                );
            }
            Some(Err(error)) => return Err(error),
        }
        let released = dispatcher.released();
        if !released.is_empty() {
            if let Some(tracker) = &tracker {
                let _ = tracker.flush().await;
            }
            subscription.release(&released).await?;
        }
        if claims_end {
            // what went with these claims may have held up others
            pump(dispatcher).await;
        }
        dispatcher.watch_lanes();
        // attempts that end at their first poll share this task's budget. To yield costs as much as several messages, so not each round
        if turn >= TURN || !has_budget_remaining() {
            turn = 0;
            yield_now().await;
        }
    }
    Ok(())
}

/// Starts what is ready, and hands over what was begun and settled.
async fn pump(dispatcher: &mut Dispatcher<'_>) {
    poll_fn(|cx| {
        dispatcher.pump(cx);
        Poll::Ready(())
    })
    .await;
    dispatcher.settle();
}

/// Lets what runs finish, until the deadline; then cancels it. Answers whether it was in time.
async fn finish(
    orders: &Orders,
    dispatcher: &mut Dispatcher<'_>,
    subscription: &mut BoxSubscription,
    deadline: Instant,
) -> bool {
    // from here on only claims that are lost matter: under those, others may be at work already
    subscription.control().pause();
    let (mut in_time, mut listening, mut late) = (true, true, Vec::new());
    while dispatcher.is_running() {
        tokio::select! {
            biased;
            () = poll_fn(|cx| dispatcher.poll_ended(cx)) => dispatcher.settle(),
            () = wait_until(orders, Some(deadline)), if in_time => {
                in_time = false;
                dispatcher.cancel_all();
            }
            // what comes all the same is given back with the end of this
            signal = subscription.receive(BATCH, &mut late), if listening => match signal {
                Ok(Signal::Lost(claims)) => dispatcher.lost(&claims),
                Ok(Signal::Closed) | Err(_) => listening = false,
                Ok(_) => {}
            }
        }
    }
    dispatcher.settle();
    in_time
}

async fn wait_until(orders: &Orders, at: Option<Instant>) {
    if let Some(at) = at {
        orders.env.sleep(at.saturating_duration_since(orders.env.now())).await;
    }
}
