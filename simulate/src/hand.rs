//! The handlers of a simulated service: what each does with which message follows from the seed, and is written down.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use postrider_core::codec::Json;
use postrider_core::{Attempt, Batch, Bulkhead, Classify, HandlerError, Message, Router};
use serde::{Deserialize, Serialize};

use crate::dice::Dice;
use crate::history::{Event, How, World};
use crate::scenario::RoutePlan;

/// What is published.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Work {
    pub(crate) number: u64,
}

impl Message for Work {
    const NAME: &'static str = "work";
    const VERSION: u32 = 1;
    type Codec = Json;
}

/// What a handler makes of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    number: u64,
}

impl Message for Made {
    const NAME: &'static str = "made";
    const VERSION: u32 = 1;
    type Codec = Json;
}

/// What one try comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Works,
    Fails,
    FailsAndAsksToWait,
    Permanent,
    Panics,
    Hangs,
}

/// One member's handler of one route.
#[derive(Clone, Debug)]
pub(crate) struct Hand {
    pub(crate) world: World,
    pub(crate) route: Arc<RoutePlan>,
    pub(crate) member: u32,
    pub(crate) seed: u64,
}

impl Hand {
    /// Adds the route to a router.
    pub(crate) fn add_to(self, router: Router, bulkhead: &Bulkhead) -> Router {
        let (options, makes, hand) = (self.route.options(bulkhead), self.route.makes, Arc::new(self));
        match (hand.route.batch.is_some(), makes) {
            (false, false) => router.route(options.handle(move |work: Work, attempt: Attempt| {
                let hand = Arc::clone(&hand);
                async move { hand.one(work.number, attempt.0).await.map(drop) }
            })),
            (false, true) => router.route(options.handle(move |work: Work, attempt: Attempt| {
                let hand = Arc::clone(&hand);
                async move { hand.one(work.number, attempt.0).await }
            })),
            (true, false) => router.route(options.handle(move |work: Batch<Work>, attempt: Attempt| {
                let hand = Arc::clone(&hand);
                async move {
                    let each = hand.all(numbers(work), attempt.0).await;
                    each.into_iter().map(|result| result.map(drop)).collect::<Vec<_>>()
                }
            })),
            (true, true) => router.route(options.handle(move |work: Batch<Work>, attempt: Attempt| {
                let hand = Arc::clone(&hand);
                async move { hand.all(numbers(work), attempt.0).await }
            })),
        }
    }

    async fn one(&self, number: u64, attempt: u32) -> Result<Made, HandlerError> {
        let result = self.all(vec![number], attempt).await.pop();
        result.unwrap_or_else(|| Err(HandlerError::msg("one message has one outcome")))
    }

    async fn all(&self, numbers: Vec<u64>, attempt: u32) -> Vec<Result<Made, HandlerError>> {
        let mut call = Call::begin(self, &numbers, attempt);
        let mut does = Vec::with_capacity(numbers.len());
        let mut takes = Duration::ZERO;
        for number in &numbers {
            let (what, time) = self.does(*number);
            does.push((*number, what));
            takes += time;
        }
        if does.iter().any(|(_, what)| *what == Does::Hangs) {
            takes = self.route.timeout * 10;
        }
        if !takes.is_zero() {
            self.world.env().sleep(takes).await;
        }
        if does.iter().any(|(_, what)| *what == Does::Panics) {
            call.ends(How::Panicked);
            // without the hook that would print it
            resume_unwind(Box::new("on purpose"));
        }
        let results = does.into_iter().map(|(number, what)| self.result(call.number, number, what)).collect();
        call.ends(How::Returned);
        results
    }

    fn result(&self, call: u64, number: u64, what: Does) -> Result<Made, HandlerError> {
        let group = self.route.group.clone();
        if what == Does::Works {
            self.world.tell(Event::Effect { group, call, number });
            return Ok(Made { number });
        }
        let permanent = what == Does::Permanent;
        self.world.tell(Event::Failed { group, call, number, permanent });
        match what {
            Does::Permanent => Err("it never works").permanent(),
            Does::FailsAndAsksToWait => Err("not now").retry_after(Duration::from_millis(700)),
            _ => Err(HandlerError::msg("no luck")),
        }
    }

    /// What this try comes to, and how long it takes.
    fn does(&self, number: u64) -> (Does, Duration) {
        let group = self.route.group.bytes().fold(0, |sum, byte| sum * 31 + u64::from(byte));
        // what kind of message it is to this route is the same in every life
        let mut kind = Dice::new(self.seed, 1_000 + group * 1_000_003 + number);
        let tries = self.world.next_try(&self.route.group, number);
        let timeout = self.route.timeout.as_millis() as u64;
        let mut time = |most: u64| Duration::from_millis(kind.between(0, most));
        let takes = match number % 4 {
            0 => Duration::ZERO,
            1 => time(timeout / 10),
            _ => time(timeout / 2),
        };
        let what = match kind.between(0, 99) {
            0..=64 => Does::Works,
            65..=69 => Does::Permanent,
            _ if tries > kind.between(1, u64::from(self.route.attempts) + 1) => Does::Works,
            _ => {
                let mut fails = Dice::new(kind.roll(), tries);
                fails.pick(&[Does::Fails, Does::Fails, Does::FailsAndAsksToWait, Does::Panics, Does::Hangs])
            }
        };
        (what, takes)
    }
}

fn numbers(batch: Batch<Work>) -> Vec<u64> {
    batch.into_iter().map(|work| work.number).collect()
}

/// A call under way; its end is written down however it comes.
struct Call<'a> {
    hand: &'a Hand,
    number: u64,
    ended: bool,
}

impl<'a> Call<'a> {
    fn begin(hand: &'a Hand, numbers: &[u64], attempt: u32) -> Self {
        let number = hand.world.next_call();
        let (group, numbers) = (hand.route.group.clone(), numbers.to_vec());
        hand.world.tell(Event::Began { member: hand.member, group, call: number, numbers, attempt });
        Self { hand, number, ended: false }
    }

    fn ends(&mut self, how: How) {
        self.ended = true;
        let group = self.hand.route.group.clone();
        self.hand.world.tell(Event::Ended { group, call: self.number, how });
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.ends(How::Dropped);
        }
    }
}
