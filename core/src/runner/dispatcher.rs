//! One route's decisions: which message starts, and what is settled; what else there is to decide of it stands in the rooms below. The
//! loop that feeds it is `task`'s; who calls the handler is `crew`'s.

mod admission;
mod claims;
mod copies;
mod direct;
mod jobs;
mod once;
mod outcomes;
mod suspects;
mod unfit;
mod unpublished;

use std::collections::{BinaryHeap, VecDeque};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::admission::{Admission, Pass};
use super::crew::{Begun, Crew, Orders, Step, Work};
use super::held::{Delayed, Held, Items};
use super::isolation::Place;
use super::lanes::{LaneId, Lanes};
use super::plan::Plan;
use super::pool::Pool;
use super::report::{RouteState, Status};
use super::stop::StopOrder;
use crate::delivery::Delivery;
use crate::env::BoxFuture;
use crate::extract::Incoming;
use crate::settle::{Claim, ClaimId, Settlement, Token};
use crate::subscribe::{Control, Health, Order};
use claims::Revocation;
use copies::CopySent;
use jobs::{Job, Jobs};
use once::Answered;
pub(crate) use once::Reservation;
use suspects::Suspects;
pub(crate) use unpublished::KeptOutputs;
use unpublished::TakenBack;

/// Who calls the handler: this task, or several.
pub(crate) enum Hands<'a> {
    Own(Box<Crew<'a>>),
    Pool(Pool),
}

/// One route at work.
pub(crate) struct Dispatcher<'a> {
    plan: &'a Plan,
    orders: &'a Orders,
    status: &'a Status,
    control: Arc<dyn Control>,
    hands: Hands<'a>,
    hash: foldhash::quality::FixedState,
    lanes: Lanes<Held>,
    /// May run as soon as there is room; each occupies its lane already.
    ready: VecDeque<Held>,
    delayed: BinaryHeap<Delayed>,
    delays: u64,
    jobs: Jobs,
    /// `None` for routes that may always begin.
    admission: Option<Box<Admission>>,
    /// Dead letters and retries on their way to the broker.
    copies: FuturesUnordered<BoxFuture<'a, CopySent>>,
    /// The messages that they are copies of, and how each is told that its claim was lost.
    copied: Vec<(Token, CancellationToken)>,
    /// Messages that the idempotency store is being asked for.
    asked: FuturesUnordered<BoxFuture<'a, Answered>>,
    /// The last token by which something was reserved.
    tokens: u64,
    store_trouble: Option<Health>,
    outputs_trouble: Option<Health>,
    /// Outputs of messages that the broker has taken back.
    taken_back: TakenBack,
    suspects: Suspects,
    place: Place,
    revoking: Vec<Revocation>,
    /// Claims whose running attempts were cancelled and haven't ended yet.
    lost: Vec<ClaimId>,
    /// Taken from cancelled attempts, to be given back.
    returned: Vec<Held>,
    settled: Vec<(Claim, Settlement)>,
    /// Counted here and added to the shared counters once a round.
    handled: u64,
    held: usize,
    now: Instant,
    /// Now, less the time for which the route's breaker let nothing start.
    patient_now: Instant,
    stopping: bool,
    /// The order to stop, which handlers may see before the route's loop does.
    stop: &'a StopOrder,
    /// The time for that is up.
    late: bool,
}

impl<'a> Dispatcher<'a> {
    pub(crate) fn new(
        plan: &'a Plan,
        orders: &'a Orders,
        status: &'a Status,
        control: Arc<dyn Control>,
        admission: Option<Admission>,
        stop: &'a StopOrder,
    ) -> Self {
        let hands = match plan.workers {
            0 | 1 => Hands::Own(Box::new(Crew::new(orders))),
            workers => Hands::Pool(Pool::new(orders, workers)),
        };
        Self {
            plan,
            orders,
            status,
            control,
            hands,
            // seeded anew for each route, by what a test can replace: which keys share a lane can be repeated, but not foreseen
            hash: foldhash::quality::FixedState::with_seed(orders.env.random()),
            lanes: Lanes::new(),
            ready: VecDeque::new(),
            delayed: BinaryHeap::new(),
            delays: 0,
            jobs: Jobs::default(),
            admission: admission.map(Box::new),
            copies: FuturesUnordered::new(),
            copied: Vec::new(),
            asked: FuturesUnordered::new(),
            tokens: orders.env.random(),
            store_trouble: None,
            outputs_trouble: None,
            taken_back: TakenBack::default(),
            suspects: Suspects::default(),
            place: orders.isolation.place(orders.index),
            revoking: Vec::new(),
            lost: Vec::new(),
            returned: Vec::new(),
            settled: Vec::new(),
            handled: 0,
            held: 0,
            now: orders.env.now(),
            patient_now: orders.env.now(),
            stopping: false,
            stop,
            late: false,
        }
    }

    /// Whether a handler runs, what one returned is on its way or, as long as there is time, somebody is asked or told something.
    pub(crate) fn is_running(&self) -> bool {
        let telling = !self.copies.is_empty() || !self.asked.is_empty() || self.suspects.is_telling();
        !self.jobs.is_empty() || telling && !self.late
    }

    /// Whether nothing starts any more, for the route's end or the service's.
    fn is_stopping(&self) -> bool {
        self.stopping || self.stop.is_given()
    }

    /// Whether new messages may be started.
    fn is_open(&self) -> bool {
        !self.is_stopping() && self.status.stalled.load(Relaxed) == 0 && self.suspects.is_empty()
    }

    /// When the next back-off ends, or what waits for its admission may ask again.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.is_stopping() {
            return None;
        }
        let admission = self.admission.as_ref().and_then(|admission| admission.until());
        self.delayed.peek().map(|d| d.due).into_iter().chain(admission).min()
    }

    /// The clock is asked once a round.
    pub(crate) fn tick(&mut self) {
        self.now = self.orders.env.now();
        self.watch_breaker();
        self.patient_now = self.patient_time(self.now);
        if let Some(admission) = &mut self.admission {
            admission.tick(self.now);
        }
    }

    /// New deliveries, in their order.
    pub(crate) fn arrived(&mut self, inbox: &mut Vec<Delivery>, cx: &mut Context<'_>) {
        self.held += inbox.len();
        let received = self.status.arrivals.at(self.now);
        let is_direct = self.is_direct();
        for mut delivery in inbox.drain(..) {
            let lane = self.lane_of(&delivery);
            if is_direct {
                match self.direct(delivery, lane, &received, cx) {
                    Some(back) => delivery = back,
                    None => continue,
                }
            }
            let mut held = Held::new(delivery, lane, Arc::clone(&received), self.patient_now);
            self.recall_outputs(&mut held);
            if self.plan.subscribe.durable_retry {
                held.go_on(self.plan.retry.max_attempts(), self.orders.env.wall_ms());
            }
            // a message is large: asked first, it is moved once
            if let Some(kept_back) = self.kept_back(held.delivery.claim_id()) {
                kept_back.push(held);
                continue;
            }
            if let Some(lane) = lane
                && self.lanes.is_busy(lane)
            {
                self.lanes.queue(lane, held);
                continue;
            }
            // the lane is free and there is room: no queue is touched
            if self.plan.batch.is_none() && self.ready.is_empty() && self.has_room() {
                self.start(Items::from_iter([held]), false, cx);
            } else {
                if let Some(lane) = lane {
                    self.lanes.occupy(lane);
                }
                self.ready.push_back(held);
            }
        }
        self.pump(cx);
    }

    /// Starts what is ready, as far as there is room.
    pub(crate) fn pump(&mut self, cx: &mut Context<'_>) {
        loop {
            while !self.ready.is_empty()
                && self.has_room()
                && let Some(first) = self.ready.pop_front()
            {
                let mut items = Items::from_iter([first]);
                // one whose handler is done takes no other of its lane along: its lane may have another under way
                if let Some(most) = self.plan.batch.filter(|_| items[0].outputs.is_none()) {
                    self.fill(&mut items, most);
                }
                self.start(items, true, cx);
            }
            if !self.try_suspect() {
                break;
            }
        }
        let has_nothing = self.ready.is_empty() && self.suspects.is_empty();
        if has_nothing || self.status.stalled.load(Relaxed) > 0 {
            self.rest();
        }
    }

    /// Back-offs that have ended: their messages are ready.
    pub(crate) fn wake_due(&mut self) {
        while self.delayed.peek().is_some_and(|next| next.due <= self.now)
            && let Some(next) = self.delayed.pop()
        {
            self.ready.push_back(next.held);
        }
    }

    /// Attempts that have ended, handlers that are done, and copies whose fate is known. Pending while there are none.
    pub(crate) fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut any = self.poll_told(cx).is_ready();
        while let Poll::Ready(sent) = self.poll_copy(cx) {
            self.copy_sent(sent, cx);
            any = true;
        }
        while let Poll::Ready(answered) = self.poll_answered(cx) {
            self.answered(answered, cx);
            any = true;
        }
        let mut steps = Vec::new();
        match &mut self.hands {
            Hands::Own(crew) => {
                while let Poll::Ready(step) = crew.poll_step(cx) {
                    steps.push(step);
                }
            }
            // the waker is left behind by the call that finds nothing
            Hands::Pool(pool) => while pool.poll_steps(cx, &mut steps).is_ready() {},
        }
        for (job, step) in steps {
            // nobody waits for a place of a handler that is done, if nothing is ready
            any |= !matches!(step, Step::Handled) || !self.ready.is_empty();
            match step {
                Step::Handled => self.jobs.handled(job),
                Step::Ended(outcome) => {
                    let Job { items, pass, .. } = self.jobs.remove(job);
                    self.conclude(items, pass, outcome, true);
                }
                Step::Cancelled(outcome) => {
                    let Job { mut items, .. } = self.jobs.remove(job);
                    if let Some(outcome) = outcome {
                        self.keep_cancelled(&mut items, outcome);
                    }
                    self.cancelled(items);
                }
            }
        }
        if !self.is_stopping()
            && let Some(admission) = &mut self.admission
        {
            any |= admission.poll_turn(cx).is_ready();
        }
        if any { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Hands over what was begun and what was settled, one call for all of it. Stale ones come again by themselves.
    pub(crate) fn settle(&mut self) {
        if let Hands::Pool(pool) = &mut self.hands {
            pool.hand_over();
        }
        if !self.settled.is_empty() {
            self.held = self.held.saturating_sub(self.settled.len());
            if let Err(error) = Claim::settle_all(&mut self.settled) {
                tracing::debug!(target: "postrider::claim", route = self.plan.names.handler, stale = error.stale.len(), "settled too late");
            }
        }
        if self.handled > 0 {
            self.status.handled.fetch_add(self.handled, Relaxed);
            self.handled = 0;
            if self.status.consecutive_failures.load(Relaxed) > 0 {
                self.status.consecutive_failures.store(0, Relaxed);
            }
        }
        if self.jobs.is_empty() && self.asked.is_empty() {
            self.place.leave();
        }
        self.status.in_flight.store(self.held, Relaxed);
        self.status.activity.fetch_add(1, Relaxed);
    }

    /// Looks for a lane that holds up three quarters of the window, and says so in the route's health.
    pub(crate) fn watch_lanes(&mut self) {
        let most = self.plan.subscribe.window.messages / 4 * 3;
        let trouble = self.lanes.longest(most.max(1)).map(|(waiting, item)| {
            let key = String::from_utf8_lossy(item.delivery.envelope.key().unwrap_or_default());
            Health::degraded(format!(
                "{waiting} messages wait behind one of the key `{key}`; the window is nearly full of them"
            ))
        });
        self.status.set_state(if self.suspects.is_empty() {
            self.admission.as_ref().map_or(RouteState::Running, |admission| admission.state())
        } else {
            RouteState::Alone
        });
        let suspects = self.suspects_trouble();
        self.watch_outputs();
        if self.status.stalled.load(Relaxed) == 0 {
            let breaker = self.admission.as_ref().and_then(|admission| admission.trouble().cloned());
            let own = self.store_trouble.clone().or_else(|| self.outputs_trouble.clone());
            self.status.set_trouble(own.or(suspects).or(breaker).or(trouble));
        }
    }

    fn lane_of(&self, delivery: &Delivery) -> Option<LaneId> {
        match self.plan.subscribe.order {
            Order::Key => delivery.envelope.key().map(|key| LaneId(self.hash.hash_one(key))),
            Order::Partition => Some(LaneId(u64::from(delivery.origin.shard))),
            Order::None => None,
        }
    }

    fn has_room(&mut self) -> bool {
        self.jobs.handling() + self.asked.len() < self.plan.concurrency
            && self.is_open()
            && self.place.enter()
            && self.admitted()
    }

    /// Fills a batch: the rest of the lanes taken, then the next that are ready.
    fn fill(&mut self, items: &mut Items, most: usize) {
        let mut next = 0;
        while items.len() < most {
            // each item brings what waits behind it: consecutive messages of one key belong into one batch
            if let Some(lane) = items.get(next).map(|held| held.lane) {
                if let Some(lane) = lane {
                    let room = most - items.len();
                    items.extend(self.lanes.take_next(lane, room));
                }
                next = items.len().max(next + 1);
            } else {
                if self.ready.front().is_none_or(|held| held.outputs.is_some()) {
                    break;
                }
                // as many at once as have no lane; one with a lane brings others with it
                let room = most - items.len();
                let is_alone = |held: &&Held| held.lane.is_none() && held.outputs.is_none();
                let alone = self.ready.iter().take(room).take_while(is_alone).count();
                items.extend(self.ready.drain(..alone.max(1)));
                next = items.len() - usize::from(alone == 0);
            }
        }
    }

    /// Begins an attempt at one message, or at a batch. `occupied`: its lanes are marked busy already.
    fn start(&mut self, mut items: Items, occupied: bool, cx: &mut Context<'_>) {
        if items.iter().any(|held| held.outputs.is_some()) {
            items = self.publish_again(items, occupied, cx);
            if items.is_empty() {
                return;
            }
        }
        if items.iter().any(|held| !held.cleared && self.is_suspect(&held.delivery)) {
            items = self.set_aside(items, occupied);
            if items.is_empty() {
                return;
            }
        }
        let pass = self.pass(items.len());
        if self.must_ask(&items) {
            if !occupied {
                items.iter().filter_map(|held| held.lane).for_each(|lane| self.lanes.occupy(lane));
            }
            return self.ask(items, pass);
        }
        self.run(items, pass, occupied, cx);
    }

    /// Calls the handler.
    fn run(&mut self, mut items: Items, mut pass: Option<Box<Pass>>, occupied: bool, cx: &mut Context<'_>) {
        if items.iter().any(|held| held.outputs.is_some()) {
            items = self.publish_again(items, occupied, cx);
            if items.is_empty() {
                return;
            }
        }
        // after the store was asked: what was handled once is no dead letter because a copy of it comes too late
        if items.iter().any(|held| self.unfit(&held.delivery.envelope).is_some()) {
            let before = items.len();
            items = self.sort_out(items, occupied);
            self.spare(pass.as_deref(), before - items.len());
            if items.is_empty() {
                return;
            }
        }
        if occupied {
            // those that waited in a lane or for room begin now; the others began when they came
            items.iter_mut().filter(|held| held.attempt == 1).for_each(|held| held.began = self.patient_now);
        }
        if let Some(pass) = &mut pass {
            pass.begin(self.orders.env.now());
        }
        let first = &items[0];
        let envelope = first.delivery.envelope.clone();
        let rest = items[1..].iter().map(|held| held.delivery.envelope.clone()).collect();
        let attempt = items.iter().map(|held| held.attempt).max().unwrap_or(1);
        let incoming =
            Incoming::new(envelope, rest, attempt, first.delivery.deliveries, first.delivery.claim_id());
        let begun = match &mut self.hands {
            Hands::Own(crew) => crew.start(|| self.jobs.next(), Work::Handle(incoming), cx),
            Hands::Pool(pool) => {
                pool.start(self.jobs.next(), Work::Handle(incoming));
                Begun::Waits { publishes: false }
            }
        };
        let publishes = match begun {
            Begun::Ended(outcome) => return self.conclude(items, pass, outcome, occupied),
            Begun::Waits { publishes } => publishes,
        };
        if !occupied {
            items.iter().filter_map(|held| held.lane).for_each(|lane| self.lanes.occupy(lane));
        }
        self.jobs.insert(items, pass, publishes);
    }
}
