//! The store that lives in the process: bounded, and gone with it. For one process, and for tests.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::{End, Ending, IdempotencyStore, Identity, Reserve, Reserved};
use crate::env::{BoxFuture, Env, deadline_from};
use crate::error::{Error, ErrorKind, Result};

/// How many messages are remembered, unless said otherwise.
const CAPACITY: usize = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running(u64),
    Completed,
    DeadLettered(u32),
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<Identity, (State, Instant)>,
    /// When each is forgotten, soonest first. A running one lapses, its place may be taken.
    expiries: BTreeSet<(Instant, Identity)>,
    forgotten: u64,
}

/// Remembers in memory. Beyond its capacity it forgets what would be forgotten soonest, and counts that.
///
/// It is gone with the process: what was handled before a restart is handled again if it comes again.
#[derive(Debug)]
pub struct MemoryStore {
    env: Env,
    capacity: usize,
    table: Mutex<Table>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// Remembers 1,000,000 messages, by the machine's clock.
    pub fn new() -> Self {
        Self::with(Env::system(), CAPACITY)
    }

    /// Remembers `capacity` messages, at least 1, by the clock of `env`.
    pub fn with(env: Env, capacity: usize) -> Self {
        Self { env, capacity: capacity.max(1), table: Mutex::default() }
    }

    /// How many messages are remembered now, those that are being handled included.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many handled messages were forgotten before their time, for want of room.
    pub fn forgotten(&self) -> u64 {
        self.lock().forgotten
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn put(&mut self, identity: Identity, state: State, until: Instant) {
        self.expiries.insert((until, identity.clone()));
        if let Some((_, before)) = self.entries.insert(identity.clone(), (state, until))
            && before != until
        {
            self.expiries.remove(&(before, identity));
        }
    }

    fn remove(&mut self, identity: &Identity) {
        if let Some((_, until)) = self.entries.remove(identity) {
            self.expiries.remove(&(until, identity.clone()));
        }
    }

    /// Forgets what has had its time.
    fn expire(&mut self, now: Instant) {
        while let Some((until, _)) = self.expiries.first()
            && *until <= now
            && let Some((_, identity)) = self.expiries.pop_first()
        {
            self.entries.remove(&identity);
        }
    }

    /// Makes room for one more: of those that are handled, the one that would be forgotten next.
    fn make_room(&mut self, capacity: usize) -> bool {
        if self.entries.len() < capacity {
            return true;
        }
        let settled = |identity: &Identity| {
            self.entries.get(identity).is_some_and(|(state, _)| !matches!(state, State::Running(_)))
        };
        let Some(oldest) = self.expiries.iter().map(|(_, identity)| identity).find(|i| settled(i)).cloned()
        else {
            return false;
        };
        self.remove(&oldest);
        self.forgotten += 1;
        true
    }

    fn reserve(&mut self, request: &Reserve, now: Instant, capacity: usize) -> Option<Reserved> {
        let found = self.entries.get(&request.identity).copied();
        match found {
            Some((State::Completed, _)) => return Some(Reserved::Completed),
            Some((State::DeadLettered(redrives), _)) if request.redrives <= redrives => {
                return Some(Reserved::DeadLettered);
            }
            Some((State::Running(token), until)) if token != request.token => {
                return Some(Reserved::Taken(until.saturating_duration_since(now)));
            }
            Some(_) => {}
            None if self.make_room(capacity) => {}
            None => return None,
        }
        self.put(request.identity.clone(), State::Running(request.token), deadline_from(now, request.lease));
        Some(Reserved::Granted)
    }

    fn end(&mut self, end: &End, now: Instant) {
        let held = match self.entries.get(&end.identity) {
            Some((State::Running(token), _)) => *token == end.token,
            // handled by whoever took it when the lease had run out
            Some((State::Completed, _)) => return,
            Some((State::DeadLettered(_), _)) | None => true,
        };
        match end.how {
            Ending::Completed(ttl) => {
                self.put(end.identity.clone(), State::Completed, deadline_from(now, ttl));
            }
            Ending::DeadLettered(ttl, redrives) if held => {
                self.put(end.identity.clone(), State::DeadLettered(redrives), deadline_from(now, ttl));
            }
            // somebody who was refused may say so, too: that opens nothing that is closed
            Ending::Released
                if held && matches!(self.entries.get(&end.identity), Some((State::Running(_), _))) =>
            {
                self.remove(&end.identity);
            }
            Ending::DeadLettered(..) | Ending::Released => {}
        }
    }
}

impl IdempotencyStore for MemoryStore {
    fn reserve<'a>(&'a self, requests: &'a [Reserve]) -> BoxFuture<'a, Result<Vec<Reserved>>> {
        let now = self.env.now();
        let mut table = self.lock();
        table.expire(now);
        let answers: Option<Vec<_>> =
            requests.iter().map(|request| table.reserve(request, now, self.capacity)).collect();
        drop(table);
        let answers = answers.ok_or_else(|| {
            let message =
                "as many messages are being handled as the store can remember; give it a larger capacity";
            Error::new(ErrorKind::Broker, "reserve", message).with("capacity", self.capacity).temporary(true)
        });
        Box::pin(std::future::ready(answers))
    }

    fn end<'a>(&'a self, endings: &'a [End]) -> BoxFuture<'a, Result<()>> {
        let now = self.env.now();
        let mut table = self.lock();
        table.expire(now);
        for end in endings {
            table.end(end, now);
        }
        drop(table);
        Box::pin(std::future::ready(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(10);
    const TTL: Duration = Duration::from_secs(100);
    const MOMENT: Duration = Duration::from_millis(1);

    fn identity(n: u8) -> Identity {
        Identity::new(&[&[n]])
    }

    fn ask(store: &MemoryStore, n: u8, token: u64, redrives: u32) -> Result<Reserved> {
        let request = Reserve { identity: identity(n), token, lease: LEASE, redrives };
        Ok(store.reserve(&[request]).now_or_never().unwrap()?[0])
    }

    fn tell(store: &MemoryStore, n: u8, token: u64, how: Ending) {
        store.end(&[End { identity: identity(n), token, how }]).now_or_never().unwrap().unwrap();
    }

    fn store(capacity: usize) -> MemoryStore {
        MemoryStore::with(Env::seeded(1), capacity)
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_until_it_is_handled_and_then_none() {
        let store = store(10);
        assert_eq!(ask(&store, 1, 7, 0).unwrap(), Reserved::Granted);
        assert_eq!(ask(&store, 1, 8, 0).unwrap(), Reserved::Taken(LEASE));
        tokio::time::advance(LEASE / 2).await;
        assert_eq!(ask(&store, 1, 7, 0).unwrap(), Reserved::Granted, "more time for whoever has it");
        tokio::time::advance(LEASE.checked_sub(MOMENT).unwrap()).await;
        assert_eq!(ask(&store, 1, 8, 0).unwrap(), Reserved::Taken(MOMENT));
        tell(&store, 1, 7, Ending::Completed(TTL));
        assert_eq!(ask(&store, 1, 8, 9).unwrap(), Reserved::Completed);
        tokio::time::advance(TTL.checked_sub(MOMENT).unwrap()).await;
        assert_eq!(ask(&store, 1, 8, 0).unwrap(), Reserved::Completed);
        tokio::time::advance(MOMENT).await;
        assert_eq!(ask(&store, 1, 8, 0).unwrap(), Reserved::Granted, "its time is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_runs_out_and_a_late_word_takes_nothing_from_the_next_holder() {
        let store = store(10);
        ask(&store, 1, 7, 0).unwrap();
        tokio::time::advance(LEASE).await;
        assert_eq!(ask(&store, 1, 8, 0).unwrap(), Reserved::Granted);
        for how in [Ending::Released, Ending::DeadLettered(TTL, 0)] {
            tell(&store, 1, 7, how);
            assert_eq!(ask(&store, 1, 9, 0).unwrap(), Reserved::Taken(LEASE), "{how:?}");
        }
        // but what was handled was handled, whoever did it
        tell(&store, 1, 7, Ending::Completed(TTL));
        assert_eq!(ask(&store, 1, 9, 0).unwrap(), Reserved::Completed);
        tell(&store, 1, 8, Ending::Released);
        assert_eq!(ask(&store, 1, 9, 0).unwrap(), Reserved::Completed);
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_redrive_reopens_a_dead_letter() {
        let store = store(10);
        ask(&store, 1, 7, 0).unwrap();
        tell(&store, 1, 7, Ending::DeadLettered(TTL, 0));
        assert_eq!(ask(&store, 1, 8, 0).unwrap(), Reserved::DeadLettered);
        assert_eq!(ask(&store, 1, 8, 1).unwrap(), Reserved::Granted);
        tell(&store, 1, 8, Ending::DeadLettered(TTL, 1));
        assert_eq!(ask(&store, 1, 9, 1).unwrap(), Reserved::DeadLettered);
    }

    #[tokio::test(start_paused = true)]
    async fn who_had_to_wait_and_lets_go_opens_no_dead_letter() {
        let store = store(10);
        ask(&store, 1, 7, 0).unwrap();
        assert_eq!(ask(&store, 1, 8, 0).unwrap(), Reserved::Taken(LEASE));
        tell(&store, 1, 7, Ending::DeadLettered(TTL, 0));
        tell(&store, 1, 8, Ending::Released);
        assert_eq!(ask(&store, 1, 9, 0).unwrap(), Reserved::DeadLettered);
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_bounded_and_never_forgets_what_is_being_handled() {
        let store = store(2);
        ask(&store, 1, 7, 0).unwrap();
        tell(&store, 1, 7, Ending::Completed(TTL));
        ask(&store, 2, 7, 0).unwrap();
        assert_eq!(ask(&store, 3, 7, 0).unwrap(), Reserved::Granted);
        assert_eq!((store.len(), store.forgotten()), (2, 1));
        let full = ask(&store, 4, 7, 0).unwrap_err();
        assert!(full.is_temporary() && full.to_string().contains("capacity"), "{full}");
        tell(&store, 2, 7, Ending::Released);
        assert_eq!(ask(&store, 4, 7, 0).unwrap(), Reserved::Granted);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u8, u64),
        Tell(u8, u64, Ending),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let how = prop_oneof![
            Just(Ending::Completed(TTL)),
            Just(Ending::DeadLettered(TTL, 0)),
            Just(Ending::Released)
        ];
        let step = prop_oneof![
            4 => (0..3_u8, 0..3_u64).prop_map(|(n, token)| Step::Ask(n, token)),
            3 => (0..3_u8, 0..3_u64, how).prop_map(|(n, token, how)| Step::Tell(n, token, how)),
            1 => (0..15_u64).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn nobody_gets_what_another_holds_or_what_is_handled(steps in steps()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let store = store(100);
                // who holds what until when, and what was handled when
                let mut holds: HashMap<u8, (u64, tokio::time::Instant)> = HashMap::new();
                let mut handled: HashMap<u8, tokio::time::Instant> = HashMap::new();
                for step in steps {
                    let now = tokio::time::Instant::now();
                    match step {
                        Step::Ask(n, token) => match ask(&store, n, token, 0).unwrap() {
                            Reserved::Granted => {
                                prop_assert!(handled.get(&n).is_none_or(|at| *at + TTL <= now));
                                prop_assert!(holds.get(&n).is_none_or(|(holder, until)| *holder == token || *until <= now));
                                holds.insert(n, (token, now + LEASE));
                            }
                            Reserved::Taken(left) => {
                                let (holder, until) = holds[&n];
                                prop_assert!(holder != token && until == now + left && !left.is_zero());
                            }
                            Reserved::Completed => prop_assert!(handled.get(&n).is_some_and(|at| *at + TTL > now)),
                            Reserved::DeadLettered => {}
                        },
                        Step::Tell(n, token, how) => {
                            tell(&store, n, token, how);
                            if matches!(how, Ending::Completed(_)) && handled.get(&n).is_none_or(|at| *at + TTL <= now) {
                                handled.insert(n, now);
                            }
                            if matches!(how, Ending::Completed(_)) || holds.get(&n).is_some_and(|(holder, _)| *holder == token) {
                                holds.remove(&n);
                            }
                        }
                        Step::Wait(seconds) => tokio::time::advance(Duration::from_secs(seconds)).await,
                    }
                    let table = store.lock();
                    prop_assert_eq!(table.entries.len(), table.expiries.len());
                }
                Ok(())
            })?;
        }
    }
}
