//! The token bucket, without clocks or tasks: `(state, now) → admit or wait`.

use std::time::{Duration, Instant};

use super::RatePolicy;

/// It keeps one number: when the bucket would be full again. Times are counted in parts of a nanosecond of which `limit` make one, so
/// that no rate is rounded.
#[derive(Debug)]
pub(super) struct Bucket {
    began: Instant,
    limit: u128,
    /// What one call takes.
    cost: u128,
    /// How far ahead of now the bucket may be full again for another call to begin.
    room: u128,
    full: u128,
}

impl Bucket {
    /// A full one.
    pub(super) fn new(policy: &RatePolicy, now: Instant) -> Self {
        let cost = policy.per.as_nanos();
        let room = cost * u128::from(policy.burst - 1);
        Self { began: now, limit: u128::from(policy.limit), cost, room, full: 0 }
    }

    /// Whether a call may begin now; else after which time, which is never too short.
    pub(super) fn peek(&self, now: Instant) -> Result<(), Duration> {
        let missing = self.full.saturating_sub(self.at(now) + self.room);
        if missing == 0 {
            return Ok(());
        }
        Err(Duration::from_nanos(u64::try_from(missing.div_ceil(self.limit)).unwrap_or(u64::MAX)))
    }

    /// Takes for `calls`, asked or not.
    pub(super) fn take(&mut self, calls: usize, now: Instant) {
        self.full = self.full.max(self.at(now)).saturating_add(self.cost.saturating_mul(calls as u128));
    }

    pub(super) fn give_back(&mut self, calls: usize) {
        self.full = self.full.saturating_sub(self.cost.saturating_mul(calls as u128));
    }

    fn at(&self, now: Instant) -> u128 {
        now.saturating_duration_since(self.began).as_nanos() * self.limit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_span_of_time_sees_more_than_its_rate_and_one_burst(
            limit in 1..500_u32, per in 1..3000_u64, burst in 1..20_u32, pauses in prop::collection::vec(0..400_u64, 1..200),
        ) {
            let policy = RatePolicy::new(limit, Duration::from_millis(per)).burst(burst);
            let mut now = Instant::now();
            let mut bucket = Bucket::new(&policy, now);
            let mut begun: Vec<Instant> = Vec::new();
            for pause in pauses {
                now += Duration::from_millis(pause);
                while bucket.peek(now).is_ok() {
                    bucket.take(1, now);
                    begun.push(now);
                }
            }
            for (first, from) in begun.iter().enumerate() {
                for (last, to) in begun.iter().enumerate().skip(first) {
                    let in_span = (last - first + 1) as u128;
                    let fill = (*to - *from).as_nanos() * u128::from(limit) / policy.per.as_nanos();
                    prop_assert!(in_span <= fill + u128::from(burst), "{in_span} in {:?}", *to - *from);
                }
            }
        }

        #[test]
        fn after_the_wait_it_admits_and_not_before(limit in 1..1000_u32, per in 1..5000_u64, burst in 1..20_u32, taken in 1..200_usize) {
            let policy = RatePolicy::new(limit, Duration::from_millis(per)).burst(burst);
            let now = Instant::now();
            let mut bucket = Bucket::new(&policy, now);
            bucket.take(taken, now);
            match bucket.peek(now) {
                Ok(()) => prop_assert!(taken < burst as usize),
                Err(wait) => {
                    prop_assert!(taken >= burst as usize);
                    prop_assert_eq!(bucket.peek(now + wait), Ok(()));
                    prop_assert!(bucket.peek(now + wait.saturating_sub(Duration::from_nanos(1))).is_err());
                }
            }
            bucket.give_back(taken);
            prop_assert_eq!(bucket.peek(now), Ok(()));
        }

        #[test]
        fn who_always_asks_in_time_gets_the_whole_rate(limit in 1..2000_u32, per in 1..3000_u64) {
            let policy = RatePolicy::new(limit, Duration::from_millis(per));
            let began = Instant::now();
            let (mut now, mut bucket) = (began, Bucket::new(&policy, began));
            for _ in 0..limit {
                while let Err(wait) = bucket.peek(now) {
                    now += wait;
                }
                bucket.take(1, now);
            }
            // the last of them begins one share before the end; each wait is less than a nanosecond too long
            let last = policy.per.saturating_sub(policy.per / limit);
            let late = (now - began).checked_sub(last);
            prop_assert!(late.is_some_and(|late| late <= Duration::from_nanos(limit.into())), "{:?}", now - began);
        }
    }
}
