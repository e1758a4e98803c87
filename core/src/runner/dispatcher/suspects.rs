//! Messages that may have ended the processes that handled them. Each runs alone, and the group is told before and afterwards: one
//! that has ended two processes while nothing else ran is dead-lettered. What only stood beside it is handled.

use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::copies::{CopySent, Sent};
use super::{Dispatcher, Held, Items};
use crate::delivery::Delivery;
use crate::env::BoxFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::outcome::Reason;
use crate::runner::events;
use crate::settle::{ClaimId, Token};
use crate::subscribe::{Control, Health, Suspect};

/// After so many processes that ended while it ran alone, a message is judged.
const STRIKES: u32 = 2;
/// How long a broker that can't be asked is left alone.
const PAUSE: Duration = Duration::from_secs(1);
/// How long the others wait for the group to hear of a suspect.
const TELLING: Duration = Duration::from_secs(5);

/// The suspects of a route. While there are any, nothing else of it starts.
#[derive(Default)]
pub(super) struct Suspects {
    waiting: VecDeque<Held>,
    /// The one that is being asked about or runs.
    alone: Option<Alone>,
    /// The group is being told that one, which came under this claim, doesn't run any more. Until it knows nothing else starts: what that
    /// ended would be laid to the suspect.
    telling: Option<(ClaimId, BoxFuture<'static, ()>)>,
    /// The group can't be asked.
    trouble: Option<Health>,
}

struct Alone {
    token: Token,
    suspect: Suspect,
    /// How often the group had been told of it before, once it is told again.
    before: Arc<OnceLock<u32>>,
}

impl Suspects {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.alone.is_none() && self.telling.is_none()
    }

    /// Whether the group has still to hear of what ran alone.
    pub(super) fn is_telling(&self) -> bool {
        self.telling.is_some()
    }

    /// Whether it has still to hear of one under these claims.
    pub(super) fn is_telling_under(&self, claims: &[ClaimId]) -> bool {
        self.telling.as_ref().is_some_and(|(claim, _)| claims.contains(claim))
    }

    pub(super) fn take_waiting(&mut self, which: impl Fn(&Held) -> bool) -> Vec<Held> {
        let (taken, stay): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(which);
        self.waiting.extend(stay);
        taken
    }

    /// Whether this one runs alone.
    pub(super) fn is_alone(&self, held: &Held) -> bool {
        self.alone.as_ref().is_some_and(|alone| alone.token == held.delivery.claim.token())
    }
}

impl Dispatcher<'_> {
    /// Whether a message was handed out so often that it may be what ends the processes.
    pub(super) fn is_suspect(&self, delivery: &Delivery) -> bool {
        self.plan.crash_limit.is_some_and(|limit| delivery.deliveries > Some(limit))
    }

    /// Takes the suspects out of what is about to start, and answers the others.
    #[cold]
    pub(super) fn set_aside(&mut self, items: Items, occupied: bool) -> Items {
        let mut rest = Items::new();
        let (mut aside, mut behind): (Vec<Held>, Vec<Held>) = (Vec::new(), Vec::new());
        for held in items {
            let follows = |other: &Held| held.lane.is_some() && other.lane == held.lane;
            let suspect = !held.cleared && self.is_suspect(&held.delivery);
            if aside.iter().chain(&behind).any(follows) || suspect && rest.iter().any(follows) {
                // it comes after a suspect of its key, or is one and comes after what isn't
                behind.push(held);
            } else if suspect {
                if !occupied {
                    held.lane.into_iter().for_each(|lane| self.lanes.occupy(lane));
                }
                events::suspected(&self.plan.names, &held.delivery);
                aside.push(held);
            } else {
                rest.push(held);
            }
        }
        self.put_back(behind);
        self.suspects.waiting.extend(aside);
        rest
    }

    /// Lets the next suspect be alone, if everything else has ended. Answers whether that one is done with already.
    pub(super) fn try_suspect(&mut self) -> bool {
        let Suspects { waiting, alone, telling, .. } = &self.suspects;
        if alone.is_some() || telling.is_some() || waiting.is_empty() || self.is_stopping() {
            return false;
        }
        if let Some(admission) = &mut self.admission {
            admission.look_again();
        }
        // admitted first: while its breaker is open, the other routes aren't to stand still
        if self.status.stalled.load(Relaxed) > 0 || !self.admitted() {
            self.place.free();
            return false;
        }
        if !self.jobs.is_empty() || !self.asked.is_empty() || !self.place.claim() {
            return false;
        }
        let Some(held) = self.suspects.waiting.pop_front() else { return false };
        let token = held.delivery.claim.token();
        self.suspects.alone = Some(Alone { token, suspect: name(&held), before: Arc::default() });
        let items = Items::from_iter([held]);
        if self.must_ask(&items) {
            // first: what ends while the store is asked was not ended by this one, and a copy of what was handled isn't judged. Its pass
            // stays where it is until it runs
            self.ask(items, None);
        } else {
            items.into_iter().for_each(|held| self.strike(held));
        }
        self.suspects.alone.is_none()
    }

    /// Tells the group that this one, which is alone, is about to run.
    pub(super) fn strike(&mut self, held: Held) {
        let before = self.suspects.alone.as_ref().map(|alone| Arc::clone(&alone.before)).unwrap_or_default();
        let (suspect, control, env) = (name(&held), Arc::clone(&self.control), &self.orders.env);
        let lost = self.hold_for_copy(&held);
        self.copies.push(Box::pin(async move {
            let telling = async {
                tokio::select! {
                    biased;
                    told = tell_strike(&*control, suspect, &before) => told,
                    () = env.sleep(TELLING) => {
                        Err(Error::new(ErrorKind::Timeout, "strikes", "the group doesn't answer").temporary(true))
                    }
                }
            };
            let sent = match lost.run_until_cancelled(telling).await {
                None => Sent::Lost,
                Some(Ok(strikes)) => Sent::Struck(strikes),
                Some(Err(error)) => Sent::Unknown(error),
            };
            CopySent { held: Some(held), sent }
        }));
    }

    /// The group couldn't be told of this one.
    pub(super) fn not_struck(&mut self, mut held: Held, error: &Error, cx: &mut Context<'_>) {
        events::strikes_failed(&self.plan.names, &held.delivery, error);
        if !error.is_temporary() && error.kind() != ErrorKind::Connection {
            // what will never be known is no reason to hold up everything: it runs alone, and is not judged
            return self.struck(held, 0, cx);
        }
        let text = format!("what ended processes can't be looked up: {error}");
        self.suspects.trouble = Some(Health::degraded(text));
        self.not_alone_now(&mut held);
        // until then the store's word may be too old
        held.reservation.iter_mut().for_each(|reservation| reservation.lapse());
        if self.is_stopping() {
            return self.returned.push(held);
        }
        // the others that are suspected wait as long, so that the rest of the service goes on
        for held in std::iter::once(held).chain(self.suspects.take_waiting(|_| true)) {
            self.delay(PAUSE, Items::from_iter([held]));
        }
        self.free_place();
    }

    /// What is to be said in the route's health: that the group can't be asked, as long as there is anything to ask.
    pub(super) fn suspects_trouble(&mut self) -> Option<Health> {
        self.suspects.trouble.as_ref()?;
        let waits = self.delayed.iter().any(|delayed| self.is_suspect(&delayed.held.delivery));
        if self.suspects.is_empty() && !waits {
            self.suspects.trouble = None;
        }
        self.suspects.trouble.clone()
    }

    /// A suspect of which the group was told: it runs, or it is judged.
    pub(super) fn struck(&mut self, mut held: Held, strikes: u32, cx: &mut Context<'_>) {
        held.cleared = true;
        self.suspects.trouble = None;
        if self.is_stopping() {
            self.not_alone_now(&mut held);
            self.returned.push(held);
        } else if self.is_revoking(&held) {
            self.not_alone_now(&mut held);
            self.withhold(held);
        } else if strikes >= STRIKES {
            let error = format!("it has ended {strikes} processes while it ran alone");
            // the group remembers until there is a letter: else, ended before that, the next processes would run it twice more
            let has_letter = self.plan.dead_letter_of(Reason::CrashLoop).is_some();
            self.leave_alone(!has_letter);
            self.give_up(held, Reason::CrashLoop, &error.into());
        } else if self.is_still_admitted() {
            self.start(Items::from_iter([held]), true, cx);
        } else {
            self.not_alone_now(&mut held);
            held.reservation.iter_mut().for_each(|reservation| reservation.lapse());
            self.delay(Duration::ZERO, Items::from_iter([held]));
        }
    }

    /// Whether the pass that was kept still holds, or there is another.
    fn is_still_admitted(&mut self) -> bool {
        if let Some(admission) = &mut self.admission {
            admission.look_again();
        }
        self.admitted()
    }

    /// What was to run alone doesn't, at least not now: the others go on, and the group knows of it what it knew before. If it comes
    /// to it again, it is suspected again.
    pub(super) fn not_alone_now(&mut self, held: &mut Held) {
        if self.suspects.is_alone(held) {
            held.cleared = false;
            self.leave_alone(false);
        }
    }

    /// What is alone and hasn't begun doesn't begin any more.
    pub(super) fn call_off(&mut self) {
        if self.jobs.is_empty() {
            self.leave_alone(false);
        }
    }

    /// What ran alone has ended, however: the group is told, and the others go on.
    pub(super) fn end_alone(&mut self) {
        self.leave_alone(true);
    }

    fn leave_alone(&mut self, has_ended: bool) {
        let Some(Alone { token, suspect, before }) = self.suspects.alone.take() else { return };
        if let Some(admission) = &mut self.admission {
            admission.look_again();
        }
        // of one that is judged the group was told nothing more
        let before = before.get().copied().filter(|before| has_ended || *before < STRIKES);
        if let Some(before) = before {
            let strikes = if has_ended { 0 } else { before };
            self.suspects.telling = Some((token.claim, self.tell_strikes(suspect, strikes)));
        }
        self.free_place();
    }

    /// There is a letter of a message that was judged: the group needn't remember it.
    pub(super) fn forgive(&mut self, held: &Held) {
        let told = self.tell_strikes(name(held), 0);
        self.copies.push(Box::pin(async move {
            told.await;
            CopySent { held: None, sent: Sent::Ended }
        }));
    }

    fn tell_strikes(&self, suspect: Suspect, strikes: u32) -> BoxFuture<'static, ()> {
        let (control, env) = (Arc::clone(&self.control), self.orders.env.clone());
        Box::pin(async move {
            // what can't be told counts too often, and only if the message comes again and is suspected again
            tokio::select! {
                biased;
                _ = control.set_strikes(suspect, strikes) => {}
                () = env.sleep(TELLING) => {}
            }
        })
    }

    /// Ready when the group has heard.
    pub(super) fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some((_, telling)) = &mut self.suspects.telling else { return Poll::Pending };
        ready!(telling.as_mut().poll(cx));
        self.suspects.telling = None;
        self.free_place();
        Poll::Ready(())
    }

    /// The other routes go on, if there is no suspect any more.
    pub(super) fn free_place(&mut self) {
        if self.suspects.is_empty() {
            self.place.free();
        }
    }
}

/// Tells the group that the message is about to run alone; answers how often that was told before without an end. `before` is that, too,
/// once it is told.
async fn tell_strike(control: &dyn Control, suspect: Suspect, before: &OnceLock<u32>) -> Result<u32> {
    // what can't be remembered here at all runs alone, and nothing more is known of it
    let strikes = match control.strikes(suspect).await {
        Ok(strikes) => strikes,
        Err(error) if error.kind() == ErrorKind::Unsupported => return Ok(0),
        Err(error) => return Err(error),
    };
    before.get_or_init(|| strikes);
    if strikes < STRIKES {
        match control.set_strikes(suspect, strikes + 1).await {
            Err(error) if error.kind() == ErrorKind::Unsupported => {}
            told => told?,
        }
    }
    Ok(strikes)
}

/// What the group knows the message by: brokers without coordinates have only what it says.
fn name(held: &Held) -> Suspect {
    let (envelope, mut hash) = (&held.delivery.envelope, xxhash_rust::xxh3::Xxh3Default::new());
    let id = if envelope.id_is_made_up() { String::new() } else { envelope.id().to_string() };
    for part in
        [envelope.source().as_bytes(), id.as_bytes(), envelope.key().unwrap_or_default(), envelope.payload()]
    {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    Suspect { origin: held.delivery.origin, fingerprint: hash.digest() }
}
