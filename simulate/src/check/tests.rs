//! What the checker allows, from both sides, on histories made by hand.

use super::*;

const GROUP: &str = "g0";
const NUMBER: u64 = 1;

/// A scenario whose first route keeps the order of keys.
fn scenario() -> Scenario {
    let of_one = |scenario: &Scenario| {
        let route = &scenario.routes[0];
        route.order == Order::Key && route.concurrency > 1 && route.batch.is_none() && !route.once
    };
    (1..1_000).map(Scenario::of).find(of_one).expect("there is one")
}

fn began(member: u32, call: u64) -> Event {
    Event::Began { member, group: GROUP.into(), call, numbers: vec![NUMBER], attempt: 1 }
}

fn ended(call: u64, how: How) -> Event {
    Event::Ended { group: GROUP.into(), call, how }
}

fn delivered(member: u32) -> Event {
    let (group, key) = (GROUP.into(), Some("k1".into()));
    Event::Delivered { member, group, number: NUMBER, position: 1, deliveries: 1, key }
}

fn lost(member: u32) -> Event {
    Event::Lost { member, group: GROUP.into() }
}

fn complaints(scenario: &Scenario, events: &[(u64, Event)]) -> Vec<String> {
    let history = History::new(scenario, events);
    let mut wrong = Vec::new();
    history.running(&scenario.routes[0], &mut wrong);
    doubles::check(&history, &scenario.routes[0], &mut wrong);
    places::check(&history, &mut wrong);
    wrong
}

#[test]
fn what_begins_and_is_cut_off_in_one_moment_may_stand_beside_the_next_holder() {
    let scenario = scenario();
    // member 1 has noticed that its claim was lost, and has the next; then member 2 begins
    let events = |last: Event, moment: u64, second: u32| {
        vec![
            (0, delivered(1)),
            (5, began(1, 1)),
            (5, began(second, 2)),
            (5, last),
            (moment, ended(2, How::Dropped)),
            (9, ended(1, How::Returned)),
        ]
    };
    assert_eq!(complaints(&scenario, &events(lost(2), 5, 2)), Vec::<String>::new());
    let unlike = [
        ("no claim was lost", events(Event::Idle, 5, 2)),
        ("the claim was another's", events(lost(3), 5, 2)),
        ("it went on", events(lost(2), 6, 2)),
        ("both are one member's", events(lost(1), 5, 1)),
    ];
    for (what, events) in unlike {
        let wrong = complaints(&scenario, &events);
        assert!(wrong.iter().any(|wrong| wrong.contains("of the same lane")), "{what}: {wrong:?}");
    }
}

#[test]
fn what_a_stop_without_time_calls_off_may_end_again_before_all_of_it_has_stopped() {
    let scenario = scenario();
    let effect = |call| Event::Effect { group: GROUP.into(), call, number: NUMBER };
    let events = |deadline_ms: u64, drained: bool, stopping: u32, before: Event| {
        vec![
            (0, delivered(1)),
            (1_000, began(1, 1)),
            (2_000, effect(1)),
            (2_500, before),
            (3_000, Event::Stopping { member: stopping, deadline_ms }),
            (3_000, ended(1, How::Dropped)),
            (3_000, began(2, 2)),
            (4_000, effect(2)),
            (4_000, ended(2, How::Returned)),
            (9_000, Event::Stopped { member: stopping, drained, took_ms: 6 }),
        ]
    };
    assert_eq!(complaints(&scenario, &events(1, false, 1, Event::Idle)), Vec::<String>::new());
    let acked = |group: &str| Event::Acked { member: 1, group: group.into(), number: NUMBER, position: 1 };
    assert_eq!(complaints(&scenario, &events(1, false, 1, acked("other"))), Vec::<String>::new());
    let unlike = [
        ("it was in time", events(1, true, 1, Event::Idle)),
        ("there was time left", events(2, false, 1, Event::Idle)),
        ("another stopped", events(1, false, 3, Event::Idle)),
        ("it was acknowledged before", events(1, false, 1, acked(GROUP))),
    ];
    for (what, events) in unlike {
        let wrong = complaints(&scenario, &events);
        assert!(wrong.iter().any(|wrong| wrong.contains("doubles have no reason")), "{what}: {wrong:?}");
    }
}

#[test]
fn no_more_calls_share_a_bulkhead_than_it_has_places() {
    let mut scenario = scenario();
    (scenario.routes[0].guarded, scenario.routes[0].order) = (true, Order::None);
    let events = [
        (0, began(1, 1)),
        (5, began(1, 2)),
        (5, began(2, 3)),
        (9, ended(1, How::Returned)),
        (9, began(1, 4)),
    ];
    for (places, wrong) in [(1, 2), (2, 0)] {
        scenario.places = places;
        let complaints = complaints(&scenario, &events);
        let of_places = complaints.iter().filter(|complaint| complaint.contains("bulkhead"));
        assert_eq!(of_places.count(), wrong, "{places} places: {complaints:?}");
    }
}
