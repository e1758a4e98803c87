//! What a subscription holds, shared by its thread, those who receive and those who settle: queues, claims, what is out.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use foldhash::fast::FixedState;
use postrider_core::{
    Claim, ClaimId, Delivery, Env, Error, Gap, InFlight, Order, Origin, RETRY_TIERS, Settlement, Signal,
    Token, Window,
};
use tokio::sync::Notify;

use crate::ahead::{Record, Records};
use crate::mark::Starts;
use crate::partition::{Held, Partition, Phase};
use crate::rebalance::Waker;
use crate::watermark::Watermark;

/// So many messages received at once are a sign that there is more.
const MUCH: usize = 64;

/// Which of a group's two topics is read. The shards of the second are numbered behind those of the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The channel's.
    Channel,
    /// The group's own: what is redriven to it in the first partition, what waits for a retry in one for each of [`RETRY_TIERS`].
    Group,
}

impl Source {
    /// The shard of the first partition.
    pub(crate) const fn base(self) -> u32 {
        match self {
            Self::Channel => 0,
            Self::Group => 1 << 24,
        }
    }

    /// Of a shard of either topic.
    pub(crate) const fn of(shard: u32) -> Self {
        if shard < Self::Group.base() { Self::Channel } else { Self::Group }
    }

    /// How long the messages of a partition wait.
    fn wait(self, number: i32) -> Option<Duration> {
        let tier = usize::try_from(number).ok()?.checked_sub(1)?;
        RETRY_TIERS.get(tier).copied().filter(|_| self == Self::Group)
    }
}

/// A place to be written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) partition: i32,
    pub(crate) epoch: u32,
    pub(crate) version: u64,
    pub(crate) position: u64,
    pub(crate) metadata: String,
}

#[allow(
    clippy::struct_excessive_bools,
    reason = "each follows another event, and they come in any combination"
)]
struct State {
    partitions: BTreeMap<i32, Partition>,
    /// Of every partition that was ever held here.
    epochs: HashMap<i32, u32>,
    window: Window,
    in_flight: InFlight,
    events: VecDeque<Signal>,
    timers: BTreeSet<(Instant, i32, u32, u64)>,
    /// Partitions whose place isn't in the log any more, or isn't sure: nothing is handed out of them.
    troubled: BTreeSet<i32>,
    paused: bool,
    /// The group's place can't be written down at present.
    held_back: bool,
    flush: bool,
    ended: Option<Error>,
    closed: bool,
    /// Which partition is looked at first, so that each gets its turn.
    turn: usize,
}

/// What a subscription holds.
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) topic: Arc<str>,
    source: Source,
    order: Order,
    env: Env,
    hash: FixedState,
    pub(crate) waker: Arc<Waker>,
    /// Of the thread that reads ahead.
    reader: Waker,
    /// Something to receive.
    pub(crate) arrived: Arc<Notify>,
    /// Something was written down, or can't be any more.
    written: Notify,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// What is out, here and under the subscription's other claims: they share one window.
struct Shares<'a> {
    own: &'a mut InFlight,
    elsewhere: InFlight,
}

impl Shares<'_> {
    fn all(&self) -> InFlight {
        let InFlight { messages, bytes } = *self.own;
        InFlight { messages: messages + self.elsewhere.messages, bytes: bytes + self.elsewhere.bytes }
    }

    fn has_room(&self, window: &Window, bytes: usize) -> bool {
        self.all().has_room(window, bytes)
    }

    /// Whether there is room for another message of unknown size.
    fn has_any_room(&self, window: &Window) -> bool {
        let all = self.all();
        all.has_room(window, 0) && (all.messages == 0 || all.bytes < window.bytes)
    }
}

impl Shared {
    pub(crate) fn new(
        topic: String,
        source: Source,
        order: Order,
        window: Window,
        env: Env,
        arrived: Arc<Notify>,
    ) -> Self {
        let state = State {
            partitions: BTreeMap::new(),
            epochs: HashMap::new(),
            window,
            in_flight: InFlight::default(),
            events: VecDeque::new(),
            timers: BTreeSet::new(),
            troubled: BTreeSet::new(),
            paused: false,
            held_back: false,
            flush: false,
            ended: None,
            closed: false,
            turn: 0,
        };
        Self {
            state: Mutex::new(state),
            topic: topic.into(),
            source,
            order,
            env,
            hash: FixedState::default(),
            waker: Arc::default(),
            reader: Waker::default(),
            arrived,
            written: Notify::new(),
        }
    }

    fn claim(&self, number: i32, epoch: u32) -> ClaimId {
        ClaimId { shard: self.source.base() + number as u32, epoch }
    }

    fn number(&self, claim: ClaimId) -> i32 {
        // the other topic's shards give a number that no partition has
        i32::try_from(claim.shard).unwrap_or(-1).wrapping_sub(self.source.base() as i32)
    }

    /// What is out under these claims.
    pub(crate) fn in_flight(&self) -> InFlight {
        self.state().in_flight
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next event, or what the window has room for, of which `elsewhere` is taken up.
    pub(crate) fn receive(
        &self,
        max: usize,
        elsewhere: InFlight,
        into: &mut Vec<Delivery>,
        claim: impl Fn(Token) -> Claim,
    ) -> Result<Option<Signal>, Error> {
        let mut state = self.state();
        let state = &mut *state;
        if let Some(signal) = state.events.pop_front() {
            return Ok(Some(signal));
        }
        if let Some(error) = state.ended.take() {
            state.closed = true;
            return Err(error);
        }
        if state.closed {
            return Ok(Some(Signal::Closed));
        }
        if state.paused || state.held_back || state.partitions.is_empty() {
            return Ok(None);
        }
        let in_flight = Shares { own: &mut state.in_flight, elsewhere };
        let (before, count) = (into.len(), state.partitions.len());
        let numbers: Vec<i32> = state.partitions.keys().copied().collect();
        let mut waiting: usize = state.partitions.values().map(|partition| partition.waiting.len()).sum();
        for step in 0..count {
            let number = numbers[(state.turn + step) % count];
            let Some(partition) = state.partitions.get_mut(&number) else { continue };
            if !partition.is_open() || state.troubled.contains(&number) {
                continue;
            }
            let ready: Vec<u64> = partition.ready().take(max - (into.len() - before)).collect();
            let mut full = false;
            for offset in ready {
                let Some(held) = partition.held.get(offset) else {
                    partition.waiting.remove(&offset);
                    continue;
                };
                if !in_flight.has_room(&state.window, held.bytes) {
                    full = true;
                    break;
                }
                waiting -= usize::from(partition.waiting.remove(&offset));
                into.extend(partition.hand_out(offset, in_flight.own, &claim));
            }
            while !full && into.len() - before < max && partition.rests_until.is_none() {
                if !in_flight.has_any_room(&state.window) {
                    full = true;
                    break;
                }
                if waiting >= state.window.messages {
                    break; // nothing more is read, but another partition may have what waits here already
                }
                let Some((offset, held, due)) = self.pop(partition, number, &mut state.troubled) else {
                    break;
                };
                if let Some(due) = due {
                    partition.keep(offset, held);
                    partition.rests_until = Some(due);
                    state.timers.insert((due, number, partition.epoch, offset));
                    self.waker.wake();
                    break;
                }
                if partition.is_delayed(held.key) || !in_flight.has_room(&state.window, held.bytes) {
                    partition.keep(offset, held);
                    partition.waiting.insert(offset);
                    waiting += 1;
                    continue;
                }
                into.push(partition.hand_on(offset, held, in_flight.own, &claim));
            }
            if full || into.len() - before == max {
                break;
            }
        }
        state.turn = (state.turn + 1) % count;
        if into.len() - before >= MUCH {
            self.reader.wake();
        }
        if !state.troubled.is_empty() {
            self.waker.wake();
        }
        Ok((into.len() > before).then_some(Signal::Deliveries))
    }

    /// Takes the next open message out of the client's queue; answers its offset, and its time if that hasn't come.
    fn pop(
        &self,
        partition: &mut Partition,
        number: i32,
        troubled: &mut BTreeSet<i32>,
    ) -> Option<(u64, Held, Option<Instant>)> {
        loop {
            let Record { offset, sent_ms, envelope } = match partition.next()? {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(target: "postrider::receive", topic = &*self.topic, partition = number, %error, "fetch error");
                    troubled.insert(number);
                    return None;
                }
            };
            let dirty = partition.is_dirty();
            if !partition.mark.take(offset) {
                if !dirty && partition.is_dirty() {
                    self.waker.wake();
                }
                continue;
            }
            let key = match self.order {
                Order::None => None,
                // the partition is what is ordered
                Order::Partition => Some(0),
                Order::Key => envelope.key().map(|key| self.hash.hash_one(key)),
            };
            let bytes = envelope.byte_len();
            return Some((offset, Held { envelope, bytes, key, out: false }, self.due(sent_ms, number)));
        }
    }

    /// When a message that waits for its retry may be handed out; `None`: now.
    fn due(&self, sent_ms: u64, number: i32) -> Option<Instant> {
        let wait = self.source.wait(number)?;
        // a copy bears the time when it was sent, not that of the message
        let since = self.env.wall_ms().saturating_sub(sent_ms);
        let left = wait.saturating_sub(Duration::from_millis(since));
        (!left.is_zero()).then(|| self.env.now() + left)
    }

    /// Reads ahead on the calling thread until the subscription is closed.
    pub(crate) fn read_ahead(&self) {
        self.reader.here();
        loop {
            let queues: Vec<_> = {
                let state = self.state();
                if state.closed {
                    return;
                }
                state.partitions.values().map(|partition| Arc::clone(&partition.queue)).collect()
            };
            for queue in &queues {
                queue.read(queues.len(), || self.arrived.notify_one());
            }
            drop(queues);
            std::thread::park();
        }
    }

    /// Answers those that were stale.
    pub(crate) fn settle(&self, batch: &[(Token, Settlement)]) -> Vec<Token> {
        let (mut stale, mut wake) = (Vec::new(), false);
        let mut state = self.state();
        let state = &mut *state;
        for (token, settlement) in batch {
            let number = self.number(token.claim);
            let found = state.partitions.get_mut(&number).filter(|partition| {
                !state.closed
                    && partition.epoch == token.claim.epoch
                    && partition.held.get(token.seq).is_some_and(|held| held.out)
            });
            let Some(partition) = found else {
                stale.push(*token);
                continue;
            };
            if *settlement == Settlement::Extend {
                continue; // the client's own thread shows that the member lives
            }
            partition.out -= 1;
            wake |= partition.phase == Phase::Revoking && partition.out == 0;
            let Some(held) = partition.held.get_mut(token.seq) else { continue };
            state.in_flight.settled(held.bytes);
            if let Settlement::GiveBack(after) = settlement {
                held.out = false;
                let key = held.key;
                match (after, key) {
                    (Some(_), Some(key)) => {
                        *partition.delayed.entry(key).or_default() += 1;
                        partition.waiting.insert(token.seq);
                    }
                    (Some(_), None) => {} // its timer brings it back
                    (None, _) => {
                        partition.waiting.insert(token.seq);
                    }
                }
                if let Some(after) = after {
                    let due = self.env.now() + *after;
                    wake |= state.timers.first().is_none_or(|(first, ..)| due < *first);
                    state.timers.insert((due, number, partition.epoch, token.seq));
                }
            } else {
                partition.held.remove(token.seq);
                wake |= !partition.is_dirty();
                partition.mark.settle(token.seq);
            }
        }
        if wake {
            self.waker.wake();
        }
        self.arrived.notify_one();
        stale
    }

    /// Brings back what has waited for its time; answers when the next one is due.
    pub(crate) fn wake_due(&self, now: Instant) -> Option<Instant> {
        let mut state = self.state();
        let state = &mut *state;
        let mut woken = false;
        while let Some((due, number, epoch, offset)) = state.timers.first().copied() {
            if due > now {
                break;
            }
            state.timers.pop_first();
            let Some(partition) = state.partitions.get_mut(&number).filter(|p| p.epoch == epoch) else {
                continue;
            };
            partition.rests_until.take_if(|until| *until <= now);
            if let Some(key) = partition.held.get(offset).map(|held| held.key) {
                partition.waiting.insert(offset);
                if let Some(key) = key
                    && let Some(count) = partition.delayed.get_mut(&key)
                {
                    *count -= 1;
                    if *count == 0 {
                        partition.delayed.remove(&key);
                    }
                }
            }
            woken = true;
        }
        if woken {
            self.arrived.notify_one();
        }
        state.timers.first().map(|(due, ..)| *due)
    }

    /// A partition that is held already comes anew: its queue goes back first.
    pub(crate) fn give_back(&self, number: i32) {
        if let Some(partition) = self.state().partitions.get(&number) {
            partition.queue.end();
        }
    }

    /// The member holds a partition from now on.
    pub(crate) fn assign(
        &self,
        number: i32,
        queue: Records,
        mark: Watermark,
        starts: Option<Starts>,
    ) -> ClaimId {
        let mut state = self.state();
        let epoch = state.epochs.entry(number).or_default();
        *epoch += 1;
        let claim = self.claim(number, *epoch);
        state.troubled.remove(&number);
        let span = state.window.messages as u64;
        state.partitions.insert(number, Partition::new(claim, queue, mark, starts, span));
        claim
    }

    /// Nothing more is handed out of these; answers the claims on them.
    pub(crate) fn begin_revoke(&self, numbers: &[i32]) -> Vec<ClaimId> {
        let mut state = self.state();
        let mut claims = Vec::new();
        for number in numbers {
            if let Some(partition) = state.partitions.get_mut(number) {
                partition.phase = Phase::Revoking;
                partition.end();
                claims.push(partition.claim());
            }
        }
        claims
    }

    /// Whether nothing runs under any of these.
    pub(crate) fn is_drained(&self, numbers: &[i32]) -> bool {
        let state = self.state();
        numbers
            .iter()
            .filter_map(|number| state.partitions.get(number))
            .all(|partition| partition.released || partition.out == 0)
    }

    /// The runner is through with these.
    pub(crate) fn release(&self, claims: &[ClaimId]) {
        let mut state = self.state();
        for claim in claims {
            if let Some(partition) = state.partitions.get_mut(&self.number(*claim))
                && partition.epoch == claim.epoch
                && partition.phase == Phase::Revoking
            {
                partition.released = true;
            }
        }
        drop(state);
        self.waker.wake();
    }

    /// The member doesn't hold these any more. Answers the claims under which something was still out.
    pub(crate) fn remove(&self, numbers: &[i32]) -> Vec<ClaimId> {
        let mut state = self.state();
        let state = &mut *state;
        let mut cut = Vec::new();
        for number in numbers {
            state.troubled.remove(number);
            let Some(partition) = state.partitions.remove(number) else { continue };
            partition.queue.end();
            for (_, held) in partition.held.iter().filter(|(_, held)| held.out) {
                state.in_flight.settled(held.bytes);
            }
            if partition.out > 0 {
                cut.push(partition.claim());
            }
            // a later hold has a later epoch, also where its place was changed meanwhile
            state.epochs.insert(*number, partition.epoch);
        }
        self.written.notify_waiters();
        self.arrived.notify_one();
        cut
    }

    /// Nothing is handed out of these until they have their new places.
    pub(crate) fn begin_move(&self, numbers: &[i32]) {
        let mut state = self.state();
        for number in numbers {
            if let Some(partition) = state.partitions.get_mut(number) {
                partition.phase = Phase::Moving;
                partition.queue.hold();
            }
        }
    }

    /// A partition has another place: what was handed out before can't be settled any more.
    pub(crate) fn moved(&self, number: i32, position: u64) {
        let mut state = self.state();
        let state = &mut *state;
        let Some(partition) = state.partitions.get_mut(&number) else { return };
        for (_, held) in partition.held.iter().filter(|(_, held)| held.out) {
            state.in_flight.settled(held.bytes);
        }
        state.troubled.remove(&number);
        let lost = partition.claim();
        partition.restart(Watermark::new(position, []));
        state.epochs.insert(number, partition.epoch);
        state.events.push_back(Signal::Lost(vec![lost]));
        state.events.push_back(Signal::Assigned(vec![partition.claim()]));
        self.arrived.notify_one();
    }

    /// The place wasn't changed after all.
    pub(crate) fn end_move(&self, numbers: &[i32]) {
        let mut state = self.state();
        for number in numbers {
            if let Some(partition) = state.partitions.get_mut(number) {
                partition.queue.go_on(false);
                if partition.phase == Phase::Moving {
                    partition.phase = Phase::Active;
                }
            }
        }
        self.arrived.notify_one();
    }

    /// Partitions whose place has to be found anew, each with what would have come next.
    pub(crate) fn troubled(&self) -> Vec<(i32, u64)> {
        let state = self.state();
        let next = |number: &i32| Some((*number, state.partitions.get(number)?.mark.next()));
        state.troubled.iter().filter_map(next).collect()
    }

    /// The place was set to what comes next: what was read of what comes behind it comes again.
    pub(crate) fn mended(&self, number: i32) {
        let mut state = self.state();
        state.troubled.remove(&number);
        if let Some(partition) = state.partitions.get_mut(&number) {
            partition.forget_read();
            if partition.phase == Phase::Moving {
                partition.phase = Phase::Active;
            }
        }
        self.arrived.notify_one();
    }

    /// From now on nothing is handed out of this partition, until its place is found anew.
    pub(crate) fn trouble(&self, number: i32) {
        self.state().troubled.insert(number);
    }

    /// All that isn't written down yet.
    pub(crate) fn to_commit(&self) -> Vec<Commit> {
        let mut state = self.state();
        state.flush = false;
        let dirty = state.partitions.iter_mut().filter(|(_, partition)| partition.is_dirty());
        let commit = |(number, partition): (&i32, &mut Partition)| Commit {
            partition: *number,
            epoch: partition.epoch,
            version: partition.mark.version(),
            position: partition.mark.position(),
            metadata: partition.metadata(),
        };
        dirty.map(commit).collect()
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.state().partitions.values().any(Partition::is_dirty)
    }

    pub(crate) fn is_flush_wanted(&self) -> bool {
        self.state().flush
    }

    /// These are written down.
    pub(crate) fn committed(&self, commits: &[Commit]) {
        let (mut state, mut opened) = (self.state(), false);
        for commit in commits {
            if let Some(partition) = state.partitions.get_mut(&commit.partition)
                && partition.epoch == commit.epoch
            {
                opened |= partition.written.replace(commit.version).is_none();
            }
        }
        drop(state);
        self.written.notify_waiters();
        if opened {
            self.arrived.notify_one();
        }
    }

    /// How often a message was begun alone and not ended.
    pub(crate) fn strikes(&self, origin: Origin) -> u32 {
        let number = self.number(ClaimId { shard: origin.shard, epoch: 0 });
        self.state().partitions.get(&number).map_or(0, |partition| partition.strikes(origin.position))
    }

    /// To be written down with the next commit; `false`: its partition isn't held here.
    pub(crate) fn set_strikes(&self, origin: Origin, strikes: u32) -> bool {
        let number = self.number(ClaimId { shard: origin.shard, epoch: 0 });
        let mut state = self.state();
        let found = state.partitions.get_mut(&number).map(|p| p.set_strikes(origin.position, strikes));
        found.is_some()
    }

    /// Resolves when all that is settled now is written down; answers those that can't be any more.
    pub(crate) async fn flush(&self) -> Vec<Token> {
        let targets: Vec<_> = {
            let mut state = self.state();
            state.flush = true;
            let dirty = state.partitions.iter().filter(|(_, partition)| partition.is_dirty());
            dirty.map(|(number, p)| (*number, p.epoch, p.mark.version(), p.mark.position())).collect()
        };
        self.waker.wake();
        loop {
            let written = self.written.notified();
            tokio::pin!(written);
            // before the look, so that nothing in between is missed
            written.as_mut().enable();
            {
                let state = self.state();
                let (mut open, mut gone) = (false, Vec::new());
                for (number, epoch, version, position) in &targets {
                    match state.partitions.get(number).filter(|partition| partition.epoch == *epoch) {
                        Some(partition) => open |= partition.written < Some(*version),
                        None => gone.push(Token { claim: self.claim(*number, *epoch), seq: *position }),
                    }
                }
                if !open {
                    return gone;
                }
            }
            written.await;
        }
    }

    pub(crate) fn event(&self, signal: Signal) {
        self.state().events.push_back(signal);
        self.arrived.notify_one();
    }

    /// Messages of a partition are missing.
    pub(crate) fn gap(&self, mut gap: Gap) {
        gap.shard += self.source.base();
        self.event(Signal::Gap(gap));
    }

    /// The subscription ends with a reason that reconnecting doesn't mend.
    pub(crate) fn end(&self, error: Error) {
        self.state().ended.get_or_insert(error);
        self.arrived.notify_one();
    }

    /// Why it ended, for whoever comes first.
    pub(crate) fn take_end(&self) -> Option<Error> {
        self.state().ended.take()
    }

    /// From now on nothing that was handed out can be settled.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        if !std::mem::replace(&mut state.closed, true) {
            state.partitions.values_mut().for_each(Partition::end);
        }
        drop(state);
        self.arrived.notify_one();
        self.waker.wake();
        self.reader.wake();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.state().paused
    }

    pub(crate) fn pause(&self, paused: bool) {
        self.state().paused = paused;
        self.arrived.notify_one();
    }

    /// Hands nothing out while `held`.
    pub(crate) fn hold_back(&self, held: bool) {
        let mut state = self.state();
        if std::mem::replace(&mut state.held_back, held) && !held {
            self.arrived.notify_one();
        }
    }

    /// Whether nothing is handed out because the group's place can't be written down.
    pub(crate) fn is_held_back(&self) -> bool {
        self.state().held_back
    }

    pub(crate) fn numbers(&self) -> Vec<i32> {
        self.state().partitions.keys().copied().collect()
    }

    /// Of each partition held here: what comes next from the log.
    pub(crate) fn nexts(&self) -> Vec<(i32, u64)> {
        self.state().partitions.iter().map(|(number, partition)| (*number, partition.mark.next())).collect()
    }

    pub(crate) fn claims(&self) -> Vec<ClaimId> {
        self.state().partitions.values().map(Partition::claim).collect()
    }

    /// Of each partition held here: the place, and how many are settled above it.
    pub(crate) fn places(&self) -> HashMap<i32, (u64, u64)> {
        let place = |(number, partition): (&i32, &Partition)| {
            (*number, (partition.mark.position(), partition.mark.settled_above().count() as u64))
        };
        self.state().partitions.iter().map(place).collect()
    }
}
