//! The checker's self-test: a history of a run in which every promise was kept, and the same with a bug put in. Each bug must be
//! caught as what it is; the sound history must pass.

use std::time::Duration;

use postrider_system_tests::checker::{Bounds, Histories, Verdict, check};
use postrider_system_tests::history::{Entry, Hold, Id, Step, Target};

const MS: u64 = 1_000_000;
const KEYS: u32 = 20;
const NUMBERS: u32 = 60;

fn bounds() -> Bounds {
    let (claim_timeout, unheard) = (Duration::from_millis(300), Duration::ZERO);
    Bounds { claim_timeout, unheard, least_in_flight: 10, once: false }
}

fn id(key: u32, number: u32) -> Id {
    Id { key, number }
}

fn hold(epoch: u32) -> Hold {
    Hold { shard: 0, epoch }
}

/// When message `number` of `key` is sent; it is handled 5 ms later.
fn sent(key: u32, number: u32) -> u64 {
    (u64::from(number) * 20 + u64::from(key) % 7) * MS
}

/// A history that can be bent.
#[derive(Clone, Default)]
struct World(Histories);

impl World {
    /// Consumer 1 works until it is killed at 600 ms; consumer 2 works from then on, the broker is killed at 900 ms. What
    /// consumer 1 handled last is handled again by consumer 2.
    fn sound() -> Self {
        let mut world = Self::default();
        for key in 0..KEYS {
            for number in 0..NUMBERS {
                let at = sent(key, number);
                world.add("publisher", at, Step::Send { id: id(key, number) });
                world.add("publisher", at + MS, Step::Confirmed { id: id(key, number) });
                if number % 10 == 9 && key == 3 {
                    world.add("auditor", at + 6 * MS, Step::DeadLetter { id: id(key, number) });
                } else if at + 5 * MS < 600 * MS {
                    world.handle("consumer-1", at + 3 * MS, id(key, number), 1);
                } else {
                    world.handle("consumer-2", at + 3 * MS, id(key, number), 1);
                }
            }
        }
        world.kill(600, Target::Consumer(1), 40);
        world.kill(900, Target::Broker, 40);
        let last = id(5, 29);
        world.handle("consumer-2", 605 * MS, last, 1);
        world
    }

    /// Consumer 2 handles three more messages of each key again.
    fn much_again() -> Self {
        let mut world = Self::sound();
        for key in 0..KEYS {
            for number in 26..29 {
                world.handle("consumer-2", 610 * MS + u64::from(number) * MS, id(key, number), 1);
            }
        }
        world
    }

    fn add(&mut self, process: &str, at: u64, step: Step) {
        self.0.entry(process.to_owned()).or_default().push(Entry { at, step });
    }

    /// 2 ms of work.
    fn handle(&mut self, process: &str, at: u64, id: Id, epoch: u32) {
        self.add(process, at, Step::Started { id, hold: hold(epoch) });
        self.add(process, at + 2 * MS, Step::Effect { id, hold: hold(epoch) });
    }

    fn kill(&mut self, at_ms: u64, target: Target, in_flight: u64) {
        self.add("driver", at_ms * MS, Step::Kill { target, in_flight });
        self.add("driver", (at_ms + 1) * MS, Step::Dead { target });
        self.add("driver", (at_ms + 2) * MS, Step::Back { target });
    }

    /// Takes out steps.
    fn without(mut self, gone: impl Fn(&Step) -> bool) -> Self {
        for entries in self.0.values_mut() {
            entries.retain(|entry| !gone(&entry.step));
        }
        self
    }

    fn without_effects_of(self, of: impl Fn(Id) -> bool) -> Self {
        self.without(|step| matches!(step, Step::Effect { id, .. } | Step::Started { id, .. } if of(*id)))
    }

    fn check(&self) -> Verdict {
        self.check_by(&bounds())
    }

    fn check_by(&self, bounds: &Bounds) -> Verdict {
        let mut histories = self.0.clone();
        for entries in histories.values_mut() {
            entries.sort_by_key(|entry| entry.at);
        }
        check(&histories, bounds)
    }
}

#[test]
fn a_sound_history_passes() {
    let verdict = World::sound().check();
    assert!(verdict.is_clean(), "{verdict:?}");
    assert_eq!(verdict.confirmed.len(), (KEYS * NUMBERS) as usize);
    assert_eq!((verdict.doubled.len(), verdict.dead_lettered.len()), (1, 6));
    assert_eq!(verdict.counted(&bounds()), (1, 1));
}

#[test]
fn a_message_acknowledged_before_it_was_handled_is_lost() {
    let verdict = World::sound().without_effects_of(|of| of == id(4, 10)).check();
    assert_eq!(Vec::from_iter(verdict.lost), [id(4, 10)]);
}

#[test]
fn the_very_last_message_is_missed_too() {
    let verdict = World::sound().without_effects_of(|of| of == id(KEYS - 1, NUMBERS - 1)).check();
    assert_eq!(verdict.lost.len(), 1);
}

#[test]
fn a_partition_that_nobody_reads_is_lost() {
    let verdict = World::sound().without_effects_of(|of| of.key == 7).check();
    assert_eq!(verdict.lost.len(), NUMBERS as usize);
}

#[test]
fn a_dead_letter_that_was_never_stored_is_a_loss() {
    let verdict =
        World::sound().without(|step| matches!(step, Step::DeadLetter { id: of } if *of == id(3, 9))).check();
    assert_eq!(Vec::from_iter(verdict.lost), [id(3, 9)]);
}

#[test]
fn what_was_begun_and_not_finished_is_lost() {
    let verdict =
        World::sound().without(|step| matches!(step, Step::Effect { id: of, .. } if *of == id(1, 1))).check();
    assert_eq!(Vec::from_iter(verdict.lost), [id(1, 1)]);
}

#[test]
fn an_effect_of_nothing_that_was_sent_is_a_phantom() {
    let mut world = World::sound();
    world.handle("consumer-2", 700 * MS, id(99, 0), 1);
    assert_eq!(Vec::from_iter(world.check().phantom), [id(99, 0)]);
}

#[test]
fn an_effect_before_its_message_was_sent_is_a_phantom() {
    let mut world = World::sound().without_effects_of(|of| of == id(6, 5));
    world.handle("consumer-1", sent(6, 5) - MS, id(6, 5), 1);
    assert_eq!(Vec::from_iter(world.check().phantom), [id(6, 5)]);
}

#[test]
fn a_body_under_another_message_s_key_is_a_phantom_and_a_loss() {
    let mut world = World::sound().without_effects_of(|of| of == id(6, 5));
    world.handle("consumer-1", sent(6, 5) + MS, id(6, 5_000), 1);
    let verdict = world.check();
    assert_eq!((verdict.phantom.len(), verdict.lost.len()), (1, 1));
}

#[test]
fn a_dead_letter_of_nothing_that_was_sent_is_a_phantom() {
    let mut world = World::sound();
    world.add("auditor", 700 * MS, Step::DeadLetter { id: id(99, 1) });
    assert_eq!(Vec::from_iter(world.check().phantom), [id(99, 1)]);
}

#[test]
fn two_neighbours_of_a_key_that_changed_places_are_inverted() {
    let mut world = World::sound().without_effects_of(|of| of == id(2, 10) || of == id(2, 11));
    world.handle("consumer-1", sent(2, 11) + 3 * MS, id(2, 11), 1);
    world.handle("consumer-1", sent(2, 11) + 6 * MS, id(2, 10), 1);
    assert_eq!(Vec::from_iter(world.check().inverted), [id(2, 10)]);
}

#[test]
fn a_retry_that_let_its_followers_pass_is_an_inversion() {
    let mut world = World::sound().without_effects_of(|of| of == id(2, 10));
    world.handle("consumer-1", sent(2, 25), id(2, 10), 1);
    assert_eq!(Vec::from_iter(world.check().inverted), [id(2, 10)]);
}

#[test]
fn a_hand_over_that_begins_with_the_newer_ones_is_an_inversion() {
    let mut world = World::sound().without_effects_of(|of| of == id(2, 30));
    world.handle("consumer-2", sent(2, 33), id(2, 30), 1);
    assert_eq!(Vec::from_iter(world.check().inverted), [id(2, 30)]);
}

#[test]
fn two_of_a_key_at_once_are_an_inversion() {
    let mut world = World::sound().without_effects_of(|of| of == id(2, 11));
    world.add("consumer-1", sent(2, 10) + 4 * MS, Step::Started { id: id(2, 11), hold: hold(1) });
    world.add("consumer-1", sent(2, 11) + 3 * MS, Step::Effect { id: id(2, 11), hold: hold(1) });
    let verdict = world.check();
    assert!(verdict.inverted.contains(&id(2, 11)), "{verdict:?}");
}

#[test]
fn a_member_that_works_on_long_after_it_was_cut_off_inverts() {
    let mut world = World::sound().without_effects_of(|of| of == id(2, 28));
    // within the claim time-out it is an overlap, which is allowed and counted
    let mut soon = world.clone();
    soon.handle("consumer-1", 700 * MS, id(2, 28), 1);
    let verdict = soon.check();
    assert_eq!((verdict.overlap.len(), verdict.inverted.len()), (1, 0), "{verdict:?}");
    world.handle("consumer-1", 1_100 * MS, id(2, 28), 1);
    assert_eq!(Vec::from_iter(world.check().inverted), [id(2, 28)]);
}

#[test]
fn a_double_without_any_kill_is_unexplained() {
    let mut world = World::sound();
    world.handle("consumer-1", sent(8, 4) + 8 * MS, id(8, 4), 1);
    let verdict = world.check();
    assert_eq!(Vec::from_iter(verdict.doubled_unexplained), [id(8, 4)]);
    assert!(verdict.doubled.contains(&id(8, 4)));
}

#[test]
fn the_kill_of_another_process_explains_no_double() {
    let mut world = World::sound()
        .without(|step| matches!(step, Step::Kill { .. } | Step::Dead { .. } | Step::Back { .. }));
    world.kill(600, Target::Consumer(2), 40);
    assert_eq!(Vec::from_iter(world.check().doubled_unexplained), [id(5, 29)]);
}

#[test]
fn a_kill_long_after_the_effect_explains_no_double() {
    let mut world = World::sound();
    world.handle("consumer-2", 610 * MS, id(5, 2), 1);
    assert_eq!(Vec::from_iter(world.check().doubled_unexplained), [id(5, 2)]);
}

#[test]
fn a_kill_after_both_effects_explains_no_double() {
    let mut world = World::sound();
    world.handle("consumer-1", 595 * MS, id(5, 28), 1);
    let verdict = world.check();
    assert!(verdict.doubled_unexplained.contains(&id(5, 28)), "{verdict:?}");
}

#[test]
fn a_kill_explains_no_more_doubles_than_were_in_flight() {
    let world = World::much_again();
    // 61 doubles by now, 40 in flight
    let verdict = world.check();
    assert!(verdict.doubled_unexplained.len() >= 20, "{}", verdict.doubled_unexplained.len());
}

#[test]
fn what_the_broker_has_not_heard_of_is_in_flight_too() {
    let world = World::much_again();
    // 61 doubles and 40 in flight as above; in its last 20 ms consumer 1 handled 19, and in the 10 ms before those 5
    for (unheard, left) in [(20, 2), (30, 0)] {
        let bounds = Bounds { unheard: Duration::from_millis(unheard), ..bounds() };
        assert_eq!(world.check_by(&bounds).doubled_unexplained.len(), left, "{unheard} ms");
    }
}

#[test]
fn three_effects_need_two_kills() {
    let mut world = World::sound();
    world.handle("consumer-2", 620 * MS, id(5, 29), 1);
    assert_eq!(Vec::from_iter(world.check().doubled_unexplained), [id(5, 29)]);
}

#[test]
fn handled_and_dead_lettered_is_a_double() {
    let mut world = World::sound();
    world.add("auditor", 100 * MS, Step::DeadLetter { id: id(8, 2) });
    assert_eq!(Vec::from_iter(world.check().doubled_unexplained), [id(8, 2)]);
}

#[test]
fn two_dead_letters_of_a_message_are_a_double() {
    let mut world = World::sound();
    world.add("auditor", sent(3, 9) + 9 * MS, Step::DeadLetter { id: id(3, 9) });
    assert_eq!(Vec::from_iter(world.check().doubled_unexplained), [id(3, 9)]);
}

#[test]
fn a_kill_of_an_idle_run_does_not_count() {
    let without = World::sound().without(|step| {
        matches!(
            step,
            Step::Kill { target: Target::Broker, .. }
                | Step::Dead { target: Target::Broker }
                | Step::Back { target: Target::Broker }
        )
    });
    let mut idle = without.clone();
    idle.kill(900, Target::Broker, 9);
    assert_eq!(idle.check().counted(&bounds()).0, 0);
    // nor does one after which nothing was confirmed
    let mut late = without;
    late.kill(1_500, Target::Broker, 40);
    assert_eq!(late.check().counted(&bounds()).0, 0);
}

#[test]
fn a_cut_explains_what_was_on_its_way_and_counts_as_no_kill() {
    let mut world = World::sound()
        .without(|step| matches!(step, Step::Kill { .. } | Step::Dead { .. } | Step::Back { .. }));
    world.kill(595, Target::Cut, 40);
    let verdict = world.check();
    assert!(verdict.doubled_unexplained.is_empty(), "{:?}", verdict.doubled_unexplained);
    assert_eq!(verdict.counted(&bounds()), (0, 0));
    // long after it, nothing is on its way any more
    world.handle("consumer-2", 1_500 * MS, id(5, 2), 1);
    assert_eq!(Vec::from_iter(world.check().doubled_unexplained), [id(5, 2)]);
}

#[test]
fn what_two_kills_explain_leaves_the_first_to_what_that_alone_explains() {
    let mut world = World::sound()
        .without(|step| matches!(step, Step::Kill { .. } | Step::Dead { .. } | Step::Back { .. }));
    world.kill(600, Target::Consumer(1), 40);
    // both of the broker's fall on number 43, the first alone on number 31, which is looked at later
    world.kill(800, Target::Broker, 1);
    world.kill(1_000, Target::Broker, 1);
    for again in [id(5, 43), id(6, 31)] {
        world.handle("consumer-2", 1_100 * MS, again, 1);
    }
    let verdict = world.check();
    assert!(verdict.doubled_unexplained.is_empty(), "{:?}", verdict.doubled_unexplained);
    // and no kill explains more than was in flight
    world.handle("consumer-2", 1_110 * MS, id(7, 43), 1);
    assert_eq!(world.check().doubled_unexplained.len(), 1);
}

#[test]
fn a_publish_without_an_answer_may_be_stored_twice_and_one_with_an_answer_may_not() {
    let mut world = World::sound();
    // number 2 of key 8 was confirmed long before the broker's kill
    world.handle("consumer-1", sent(8, 2) + 700 * MS, id(8, 2), 1);
    assert_eq!(Vec::from_iter(world.check().doubled_unexplained), [id(8, 2)]);
    let mut world = World::sound().without(|step| *step == Step::Confirmed { id: id(8, 2) });
    world.add("publisher", 990 * MS, Step::Confirmed { id: id(8, 2) });
    world.handle("consumer-1", sent(8, 2) + 700 * MS, id(8, 2), 1);
    assert!(!world.check().doubled_unexplained.contains(&id(8, 2)));
}

#[test]
fn with_a_store_only_the_end_of_the_process_explains_a_double() {
    // handled again around the kill of the broker at 900 ms, as it may be without one
    let mut world = World::sound();
    let (last, again) = (id(6, 44), 903 * MS);
    world.handle("consumer-2", again, last, 2);
    assert!(world.check().is_clean());
    let once = Bounds { once: true, ..bounds() };
    let verdict = world.check_by(&once);
    assert_eq!(Vec::from_iter(verdict.doubled_unexplained), [last]);
    assert!(World::sound().check_by(&once).is_clean(), "the kill of the consumer explains its own");
}

#[test]
fn a_dead_letter_that_is_read_late_is_explained_by_when_its_message_failed() {
    let of = id(3, 39);
    let world = |began: u64| {
        let mut world = World::sound().without(|step| matches!(step, Step::DeadLetter { id } if *id == of));
        world.add("consumer-2", began * MS, Step::Started { id: of, hold: hold(1) });
        // the broker was killed at 900 ms, and what it tells is 300 ms old at most
        world.add("auditor", 1_500 * MS, Step::DeadLetter { id: of });
        world.add("auditor", 1_510 * MS, Step::DeadLetter { id: of });
        world
    };
    assert!(world(890).check().is_clean());
    assert_eq!(Vec::from_iter(world(1_400).check().doubled_unexplained), [of]);
}

#[test]
fn a_dead_letter_of_a_handler_that_was_killed_is_explained_by_that_kill_alone() {
    let of = id(3, 29);
    let world = |process: &str| {
        let mut world = World::sound();
        world.add(process, 585 * MS, Step::Started { id: of, hold: hold(1) });
        world.add("auditor", 650 * MS, Step::DeadLetter { id: of });
        world
    };
    assert!(world("consumer-1").check().is_clean());
    assert_eq!(Vec::from_iter(world("consumer-2").check().doubled_unexplained), [of]);
}

#[test]
fn one_kill_may_fall_on_a_message_and_on_its_dead_letter_and_explains_no_third_double() {
    let of = id(3, 39);
    let world = |reads: &[u64]| {
        let mut world = World::sound().without(|step| matches!(step, Step::DeadLetter { id } if *id == of));
        world.add("consumer-2", 880 * MS, Step::Started { id: of, hold: hold(1) });
        for at in reads {
            world.add("auditor", at * MS, Step::DeadLetter { id: of });
        }
        world.check()
    };
    // read when the broker was killed, read again, and the work of a message that was handled again
    assert!(world(&[895, 1_500, 1_510]).is_clean());
    assert_eq!(Vec::from_iter(world(&[895, 1_500, 1_510, 1_520]).doubled_unexplained), [of]);
}

#[test]
fn a_message_stored_twice_by_a_kill_may_be_handled_again_after_it_but_not_more_often() {
    let of = id(11, 44);
    let world = |effects: &[u64]| {
        let mut world = World::sound().without_effects_of(|id| id == of);
        // the broker was killed at 900 ms: it had the message, and its publisher heard of it later
        world = world.without(|step| matches!(step, Step::Confirmed { id } if *id == of));
        world.add("publisher", 910 * MS, Step::Confirmed { id: of });
        for at in effects {
            world.handle("consumer-2", at * MS, of, 1);
        }
        world.check()
    };
    assert!(world(&[890, 920, 925]).is_clean());
    assert_eq!(Vec::from_iter(world(&[890, 920, 925, 930]).doubled_unexplained), [of]);
}

#[test]
fn an_outage_of_the_dead_letters_explains_no_double() {
    let mut world = World::sound();
    world.kill(700, Target::Letters, 40);
    world.add("auditor", 703 * MS, Step::DeadLetter { id: id(3, 29) });
    world.add("auditor", 704 * MS, Step::DeadLetter { id: id(3, 29) });
    assert_eq!(Vec::from_iter(world.check().doubled_unexplained), [id(3, 29)]);
}
