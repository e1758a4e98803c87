//! What happens to messages whose claim ends, and to all of them when the route stops.

use std::sync::atomic::Ordering::Relaxed;

use super::{Dispatcher, Hands, Held, Items};
use crate::runner::events;
use crate::settle::{ClaimId, Settlement};

/// Claims that are to be given up as soon as nothing runs under them.
pub(crate) struct Revocation {
    claims: Vec<ClaimId>,
    /// Not started; given back in their order once what runs has ended.
    held: Vec<Held>,
}

impl Dispatcher<'_> {
    /// These claims are gone: what runs under them is cancelled, what waits is forgotten. The broker redelivers both.
    pub(crate) fn lost(&mut self, claims: &[ClaimId]) {
        events::claims_lost(&self.plan.names, claims);
        let is_theirs = |held: &Held| claims.contains(&held.delivery.claim_id());
        let mut forgotten = self.evict(is_theirs);
        self.revoking.retain_mut(|Revocation { claims: revoking, held }| {
            revoking.retain(|claim| !claims.contains(claim));
            forgotten.extend(held.extract_if(.., |held| is_theirs(held)));
            !revoking.is_empty()
        });
        self.forget(forgotten);
        let copies = self.copied.iter().filter(|(token, _)| claims.contains(&token.claim));
        copies.for_each(|(_, lost)| lost.cancel());
        self.lost.extend_from_slice(claims);
        self.cancel(|held| claims.contains(&held.delivery.claim_id()));
        self.forget_lost();
    }

    /// These claims are to be given up: nothing new starts under them, what runs finishes.
    pub(crate) fn revoke(&mut self, claims: Vec<ClaimId>) {
        let held = self.evict(|held| claims.contains(&held.delivery.claim_id()));
        self.revoking.push(Revocation { claims, held });
    }

    /// Claims under which nothing runs any more; what was held back is given back now, in order.
    pub(crate) fn released(&mut self) -> Vec<ClaimId> {
        let mut released = Vec::new();
        let revoking = std::mem::take(&mut self.revoking);
        for revocation in revoking {
            // a group whose claim is gone may not listen any more
            if self.runs_under(&revocation.claims) || self.suspects.is_telling_under(&revocation.claims) {
                self.revoking.push(revocation);
            } else {
                self.give_back(revocation.held);
                released.extend(revocation.claims);
            }
        }
        released
    }

    /// What comes under a claim that is being given up is kept back, too: where that is.
    pub(super) fn kept_back(&mut self, claim: ClaimId) -> Option<&mut Vec<Held>> {
        let revocation = self.revoking.iter_mut().find(|revocation| revocation.claims.contains(&claim))?;
        Some(&mut revocation.held)
    }

    pub(super) fn is_revoking(&self, held: &Held) -> bool {
        let claim = held.delivery.claim_id();
        self.revoking.iter().any(|revocation| revocation.claims.contains(&claim))
    }

    /// What was under way under a claim that is being given up waits for that; its lane goes on.
    pub(super) fn withhold(&mut self, held: Held) {
        if let Some(lane) = held.lane {
            self.release(lane);
        }
        match self.kept_back(held.delivery.claim_id()) {
            Some(kept_back) => kept_back.push(held),
            None => self.ready.push_back(held),
        }
    }

    /// From now on nothing starts.
    pub(crate) fn stop(&mut self) {
        events::draining(&self.plan.names, self.held);
        self.stopping = true;
        self.rest();
    }

    /// The time is up: what runs is cancelled, and ends as such when it is polled next.
    pub(crate) fn cancel_all(&mut self) {
        self.late = true;
        self.cancel(|_| true);
        // a copy that isn't confirmed leaves its message with the broker
        let copies = self.copied.len();
        self.copies.clear();
        self.asked.clear();
        self.copied.clear();
        self.call_off();
        self.held = self.held.saturating_sub(copies);
        self.status.given_back.fetch_add(copies as u64, Relaxed);
    }

    /// Gives back all that never finished, in the order in which it came. Answers how many.
    pub(crate) fn give_all_back(&mut self) -> usize {
        let mut held = std::mem::take(&mut self.returned);
        held.extend(self.evict(|_| true));
        held.extend(std::mem::take(&mut self.revoking).into_iter().flat_map(|revocation| revocation.held));
        let count = held.len();
        self.give_back(held);
        count
    }

    /// An attempt was cancelled: not a failure, so nothing is counted against its messages.
    pub(super) fn cancelled(&mut self, items: Items) {
        self.status.cancelled.fetch_add(items.len() as u64, Relaxed);
        let (mut requeued, mut behind): (Vec<Held>, Vec<Held>) = (Vec::new(), Vec::new());
        for held in items {
            if self.suspects.is_alone(&held) {
                self.end_alone();
            }
            if self.is_lost(&held) {
                self.leave(held);
            } else if self.is_stopping() {
                self.returned.push(held);
            } else if self.is_revoking(&held) {
                self.withhold(held);
            } else if held.lane.is_some() && requeued.iter().any(|other| other.lane == held.lane) {
                behind.push(held);
            } else {
                requeued.push(held);
            }
        }
        self.put_back(behind);
        self.ready.extend(requeued);
        self.forget_lost();
    }

    /// Whether its claim is gone.
    pub(super) fn is_lost(&self, held: &Held) -> bool {
        self.lost.contains(&held.delivery.claim_id())
    }

    /// Leaves what was under way to the next claim, under which its key goes on.
    pub(super) fn leave(&mut self, held: Held) {
        held.lane.into_iter().for_each(|lane| self.release(lane));
        self.forget(vec![held]);
    }

    /// Claims that are gone, and under which nothing runs any more.
    pub(super) fn forget_lost(&mut self) {
        let lost = std::mem::take(&mut self.lost);
        self.lost = lost.into_iter().filter(|claim| self.runs_under(&[*claim])).collect();
    }

    /// Back to the heads of their lanes, in which others of theirs are under way, in the order in which they are given.
    pub(super) fn put_back(&mut self, behind: Vec<Held>) {
        for held in behind.into_iter().rev() {
            if let Some(lane) = held.lane {
                self.lanes.put_back(lane, std::iter::once(held));
            }
        }
    }

    fn runs_under(&self, claims: &[ClaimId]) -> bool {
        let running = self.jobs.held().map(|held| held.delivery.claim_id());
        running.chain(self.copied.iter().map(|(token, _)| token.claim)).any(|claim| claims.contains(&claim))
    }

    fn cancel(&mut self, which: impl Fn(&Held) -> bool) {
        for (job, items) in self.jobs.iter() {
            if items.iter().any(&which) {
                match &mut self.hands {
                    Hands::Own(crew) => crew.cancel(job),
                    Hands::Pool(pool) => pool.cancel(job),
                }
            }
        }
    }

    /// Takes out what doesn't run, wherever it waits.
    fn evict(&mut self, which: impl Fn(&Held) -> bool) -> Vec<Held> {
        let mut out = self.lanes.take_waiting(&which);
        let suspects = self.suspects.take_waiting(&which);
        self.free_place();
        let (taken, stay): (Vec<_>, Vec<_>) = self.ready.drain(..).partition(&which);
        self.ready.extend(stay);
        let (late, stay): (Vec<_>, Vec<_>) = self.delayed.drain().partition(|delayed| which(&delayed.held));
        self.delayed.extend(stay);
        for held in suspects.into_iter().chain(taken).chain(late.into_iter().map(|delayed| delayed.held)) {
            if let Some(lane) = held.lane {
                self.release(lane);
            }
            out.push(held);
        }
        out
    }

    pub(super) fn forget(&mut self, mut held: Vec<Held>) {
        for held in &mut held {
            self.remember_outputs(held);
            self.let_go(held);
        }
        self.held = self.held.saturating_sub(held.len());
        self.status.given_back.fetch_add(held.len() as u64, Relaxed);
        // dropping a stale claim changes nothing; the broker redelivers by itself
        drop(held);
    }

    fn give_back(&mut self, mut held: Vec<Held>) {
        for held in &mut held {
            self.remember_outputs(held);
            self.let_go(held);
        }
        held.sort_by_key(|held| held.delivery.claim.token());
        self.status.given_back.fetch_add(held.len() as u64, Relaxed);
        self.settled.extend(held.into_iter().map(|held| (held.delivery.claim, Settlement::GiveBack(None))));
        self.settle();
    }
}
