//! The breaker's decisions, without clocks or tasks: `(state, event, now) → state`.

use std::time::{Duration, Instant};

use super::{BreakerPolicy, BreakerState};

/// What stands for a time that is longer than clocks reach.
const LONGEST: Duration = Duration::from_hours(24 * 365);

/// Into how many parts the window is cut; one goes at a time.
const PARTS: u64 = 10;

/// The right to make one call, under the state that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Permit {
    /// Rises with every change of state: a call that ends under another says nothing of that one.
    generation: u64,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    /// It was dropped, or says nothing of the other side.
    Cancelled,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    calls: u64,
    failed: u64,
    slow: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen { running: u32, succeeded: u32 },
}

#[derive(Debug)]
pub(super) struct Machine {
    policy: BreakerPolicy,
    state: State,
    generation: u64,
    began: Instant,
    /// The newest part of the window, by its number since `began`.
    part: u64,
    parts: [Counts; PARTS as usize],
    consecutive: u32,
}

impl Machine {
    pub(super) fn new(policy: BreakerPolicy, now: Instant) -> Self {
        Self {
            policy,
            state: State::Closed,
            generation: 0,
            began: now,
            part: 0,
            parts: [Counts::default(); PARTS as usize],
            consecutive: 0,
        }
    }

    pub(super) fn policy(&self) -> &BreakerPolicy {
        &self.policy
    }

    pub(super) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether this permit's state still holds.
    pub(super) fn holds(&self, permit: Permit) -> bool {
        permit.generation == self.generation
    }

    /// What [`admit`](Self::admit) would answer.
    pub(super) fn peek(&self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Open { until } if until > now => Err(until - now),
            // those that are under way decide
            State::HalfOpen { running, succeeded } if running + succeeded >= self.policy.probes => {
                Err(Duration::ZERO)
            }
            State::Closed | State::Open { .. } | State::HalfOpen { .. } => Ok(()),
        }
    }

    /// Whether a call may be made now; else after which time it may be asked for again.
    pub(super) fn admit(&mut self, now: Instant) -> Result<Permit, Duration> {
        self.peek(now)?;
        if let State::Open { .. } = self.state {
            self.change(State::HalfOpen { running: 0, succeeded: 0 });
        }
        if let State::HalfOpen { running, .. } = &mut self.state {
            *running += 1;
        }
        Ok(Permit { generation: self.generation })
    }

    pub(super) fn ended(&mut self, permit: Permit, verdict: Verdict, took: Duration, now: Instant) {
        if permit.generation != self.generation {
            return;
        }
        match &mut self.state {
            State::Open { .. } => {}
            State::Closed => self.count(verdict, took, now),
            State::HalfOpen { running, succeeded } => {
                *running = running.saturating_sub(1);
                match verdict {
                    Verdict::Cancelled => {}
                    Verdict::Failed => self.open(now),
                    Verdict::Succeeded => {
                        *succeeded += 1;
                        if *succeeded >= self.policy.probes {
                            self.close(now);
                        }
                    }
                }
            }
        }
    }

    fn count(&mut self, verdict: Verdict, took: Duration, now: Instant) {
        if verdict == Verdict::Cancelled {
            return;
        }
        self.turn(now);
        let failed = verdict == Verdict::Failed;
        self.consecutive = if failed { self.consecutive.saturating_add(1) } else { 0 };
        let slow = self.policy.slow.is_some_and(|(limit, _)| took > limit);
        let counts = &mut self.parts[(self.part % PARTS) as usize];
        counts.calls += 1;
        counts.failed += u64::from(failed);
        counts.slow += u64::from(slow);
        let all = self.parts.iter().fold(Counts::default(), |all, part| Counts {
            calls: all.calls + part.calls,
            failed: all.failed + part.failed,
            slow: all.slow + part.slow,
        });
        let reaches = |part: u64, rate: f64| part as f64 >= rate * all.calls as f64;
        let enough = all.calls >= u64::from(self.policy.min_calls);
        let too_many = enough && reaches(all.failed, self.policy.rate);
        let too_slow = enough && self.policy.slow.is_some_and(|(_, rate)| reaches(all.slow, rate));
        let in_a_row = self.policy.consecutive.is_some_and(|most| self.consecutive >= most);
        if too_many || too_slow || in_a_row {
            self.open(now);
        }
    }

    /// Forgets the parts of the window that lie too far back.
    fn turn(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.began).as_nanos();
        let each = (self.policy.window.as_nanos() / u128::from(PARTS)).max(1);
        let part = u64::try_from(since / each).unwrap_or(u64::MAX);
        for gone in (self.part + 1..=part).take(PARTS as usize) {
            self.parts[(gone % PARTS) as usize] = Counts::default();
        }
        self.part = self.part.max(part);
    }

    fn open(&mut self, now: Instant) {
        self.change(State::Open { until: now.checked_add(self.policy.open_for).unwrap_or(now + LONGEST) });
    }

    fn close(&mut self, now: Instant) {
        self.change(State::Closed);
        // what failed before says nothing of what comes
        (self.began, self.part, self.consecutive) = (now, 0, 0);
        self.parts = [Counts::default(); PARTS as usize];
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Admit,
        End(usize, Verdict),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let verdict = prop_oneof![2 => Just(Verdict::Failed), 2 => Just(Verdict::Succeeded), 1 => Just(Verdict::Cancelled)];
        let step = prop_oneof![
            4 => Just(Step::Admit),
            4 => (any::<usize>(), verdict).prop_map(|(which, verdict)| Step::End(which, verdict)),
            1 => (0..2000_u64).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn open_lets_nothing_through_and_half_open_no_more_than_its_probes(steps in steps(), probes in 1..4_u32) {
            let ms = Duration::from_millis;
            let policy = BreakerPolicy::new().failure_rate(0.5, ms(1000), 3).consecutive_failures(4).open_for(ms(500)).probes(probes);
            let mut now = Instant::now();
            let mut machine = Machine::new(policy, now);
            let (mut under_way, mut opened): (Vec<Permit>, Option<Instant>) = (Vec::new(), None);
            for step in steps {
                let before = machine.state();
                match step {
                    Step::Wait(time) => now += ms(time),
                    Step::Admit => {
                        let due = opened.map(|at| at + ms(500));
                        let peeked = machine.peek(now);
                        let admitted = machine.admit(now);
                        prop_assert_eq!(peeked.err(), admitted.err(), "a look tells what asking would");
                        match admitted {
                            Ok(permit) => {
                                prop_assert!(before != BreakerState::Open || due.is_some_and(|due| due <= now));
                                under_way.push(permit);
                                let probing = under_way.iter().filter(|p| p.generation == machine.generation).count();
                                prop_assert!(machine.state() != BreakerState::HalfOpen || probing <= probes as usize);
                            }
                            Err(left) => {
                                prop_assert!(before != BreakerState::Closed);
                                prop_assert!(left.is_zero() || due == Some(now + left));
                            }
                        }
                    }
                    Step::End(which, verdict) if !under_way.is_empty() => {
                        let permit = under_way.swap_remove(which % under_way.len());
                        let current = permit.generation == machine.generation;
                        machine.ended(permit, verdict, Duration::ZERO, now);
                        let after = machine.state();
                        prop_assert!(current || after == before, "an old call changes nothing");
                        prop_assert!(verdict != Verdict::Cancelled || after == before);
                        if before == BreakerState::HalfOpen && current {
                            prop_assert!(verdict != Verdict::Failed || after == BreakerState::Open);
                        }
                    }
                    Step::End(..) => {}
                }
                if machine.state() == BreakerState::Open && before != BreakerState::Open {
                    opened = Some(now);
                }
            }
            // whatever happened: left alone for a window, it lets somebody through again, and successes close it
            now += ms(1200);
            for permit in under_way {
                machine.ended(permit, Verdict::Cancelled, Duration::ZERO, now);
            }
            for _ in 0..probes {
                let permit = machine.admit(now).expect("somebody is let through");
                machine.ended(permit, Verdict::Succeeded, Duration::ZERO, now);
            }
            prop_assert_eq!(machine.state(), BreakerState::Closed);
        }

        #[test]
        fn failures_below_the_rate_or_the_volume_never_open_it(calls in prop::collection::vec(any::<bool>(), 1..200)) {
            let mut now = Instant::now();
            let mut machine = Machine::new(BreakerPolicy::new().failure_rate(0.9, Duration::from_secs(1), 10), now);
            let mut recent: Vec<(Instant, bool)> = Vec::new();
            for ok in calls {
                now += Duration::from_millis(37);
                let Ok(permit) = machine.admit(now) else { break };
                machine.ended(permit, if ok { Verdict::Succeeded } else { Verdict::Failed }, Duration::ZERO, now);
                recent.push((now, ok));
                // the window may reach a part less far than it says, never farther
                recent.retain(|(at, _)| now.duration_since(*at) < Duration::from_secs(1));
                let failed = recent.iter().filter(|(_, ok)| !ok).count();
                if recent.len() < 10 || failed == 0 {
                    prop_assert_eq!(machine.state(), BreakerState::Closed);
                }
            }
        }
    }
}
