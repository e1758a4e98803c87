use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Wake;
use std::time::Duration;

use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::*;
use crate::publish::Confirm;

const BOUND: Window = Window { messages: 4, bytes: 100 };

fn entry(bytes: usize, key: Option<u64>) -> NewSend<u32> {
    NewSend { deadline: Instant::now() + Duration::from_secs(1), key, bytes, sent: 7 }
}

fn pending() -> Arc<Pending<u32>> {
    Arc::new(Pending::new(BOUND))
}

fn confirm(pending: &Arc<Pending<u32>>, token: u64) -> Confirm {
    Confirm::tracked(Arc::clone(pending) as Arc<dyn Confirms>, token)
}

/// The room of a send, taken over.
fn taken(pending: &Pending<u32>, token: u64) -> Option<usize> {
    let mut room = None;
    pending.take_rooms([token], |_, _, bytes| room = Some(bytes));
    room
}

fn failed() -> Confirmed {
    Err(PublishError::Failed(Error::new(ErrorKind::Broker, "publish", "no")))
}

#[tokio::test]
async fn an_answer_reaches_its_confirm_once_and_frees_key_and_room() {
    let pending = pending();
    let token = pending.try_open(entry(100, Some(1))).unwrap();
    assert!(pending.has_key(1) && pending.try_open(entry(1, None)).is_err());
    let confirm = confirm(&pending, token);
    assert_eq!(pending.resolve(token, |_| Ok(Receipt::new(0, 7))), Some(7));
    assert_eq!(pending.resolve(token, |_| failed()), None);
    assert!(!pending.has_key(1));
    let next = pending.try_open(entry(100, Some(1))).unwrap();
    assert_eq!(confirm.await.unwrap().position, 7);
    assert_eq!(pending.report().confirmed, 1);
    assert_eq!(pending.unanswered(), [next]);
}

#[tokio::test]
async fn many_answers_are_as_good_as_one_after_the_other() {
    let pending = pending();
    let tokens = [1, 2, 3].map(|key| pending.try_open(entry(30, Some(key))).unwrap());
    let mut waits = Box::pin(pending.room(50));
    assert!(waits.as_mut().now_or_never().is_none());
    let [first, second, third] = tokens.map(|token| confirm(&pending, token));
    drop(second);
    // one of them twice, and one that nobody has sent
    let answers = [tokens[0], tokens[1], tokens[0], tokens[1] + 7];
    pending.resolve_all(answers.into_iter().map(|token| {
        (token, move |sent: &mut u32| {
            assert_eq!(*sent, 7);
            Ok(Receipt::new(0, token))
        })
    }));
    assert_eq!(first.await.unwrap().position, tokens[0]);
    assert!(third.now_or_never().is_none());
    assert!(waits.now_or_never().is_some());
    assert_eq!((pending.unanswered(), pending.report().confirmed), (vec![tokens[2]], 2));
}

#[test]
fn a_late_answer_does_not_reach_another_send_in_the_same_place() {
    let pending = pending();
    let old = pending.try_open(entry(1, None)).unwrap();
    assert_eq!(pending.cancel(old), Some(7));
    let new = pending.try_open(entry(1, None)).unwrap();
    assert_eq!((old as u32, pending.resolve(old, |_| failed())), (new as u32, None));
    assert_eq!((pending.cancel(old), pending.report().failed), (None, 0));
    assert_eq!(pending.unanswered(), [new]);
}

#[test]
fn what_was_given_up_before_it_could_be_handed_over_leaves_nothing_behind() {
    let pending = pending();
    let token = pending.try_open(entry(100, Some(1))).unwrap();
    pending.resolve(token, |_| failed());
    assert_eq!(pending.cancel(token), None);
    assert!(pending.table().slots.is_empty() && pending.try_open(entry(100, Some(1))).is_ok());
}

#[test]
fn both_bounds_hold_and_one_message_always_fits() {
    let pending = pending();
    let large = pending.try_open(entry(1_000, None)).unwrap();
    assert!(pending.try_open(entry(0, None)).is_err());
    pending.cancel(large);
    for _ in 0..3 {
        pending.try_open(entry(33, None)).unwrap();
    }
    assert!(pending.try_open(entry(2, None)).is_err(), "101 bytes");
    pending.try_open(entry(1, None)).unwrap();
    assert!(pending.try_open(entry(0, None)).is_err(), "5 messages");
}

#[tokio::test]
async fn many_rooms_are_taken_over_and_come_free_with_the_answers() {
    let pending = pending();
    let [first, second, third] = [10, 20, 70].map(|bytes| pending.try_open(entry(bytes, None)).unwrap());
    let confirms = [first, third].map(|token| confirm(&pending, token));
    pending.resolve(second, |_| Ok(Receipt::default()));
    let mut taken = Vec::new();
    pending.take_rooms([first, second, third], |token, sent, bytes| {
        *sent += 1;
        taken.push((token, bytes));
    });
    assert_eq!(taken, [(first, 10), (third, 70)]);
    pending.take_rooms([first], |_, _, bytes| panic!("{bytes} were taken already"));
    // one has its answer before the adapter is through with it: its room is still the adapter's
    assert_eq!(pending.resolve(third, |_| failed()), Some(8));
    assert!(pending.try_open(entry(21, None)).is_err());
    pending.resolve_taken([(first, 10, Ok(Receipt::new(0, 7))), (third, 70, Ok(Receipt::default()))]);
    let [first, third] = confirms;
    assert_eq!(first.await.unwrap().position, 7);
    assert!(third.await.is_err());
    assert!(pending.try_open(entry(100, None)).is_ok());
    let report = pending.report();
    assert_eq!((report.confirmed, report.failed), (2, 1));
}

#[test]
fn a_room_that_is_returned_is_the_sends_again_or_free() {
    let pending = pending();
    let token = pending.try_open(entry(100, None)).unwrap();
    assert_eq!(taken(&pending, token), Some(100));
    assert!(pending.return_room(token, 100));
    assert_eq!(taken(&pending, token), Some(100));
    assert_eq!(pending.resolve(token, |_| failed()), Some(7));
    assert!(pending.try_open(entry(1, None)).is_err());
    assert!(!pending.return_room(token, 100));
    assert!(pending.try_open(entry(100, None)).is_ok());
}

#[tokio::test]
async fn room_is_granted_in_the_order_of_asking_and_given_back_when_not_wanted() {
    let pending = pending();
    let token = pending.try_open(entry(90, None)).unwrap();
    let (mut large, mut small) = (Box::pin(pending.room(50)), Box::pin(pending.room(5)));
    assert!((&mut large).now_or_never().is_none() && (&mut small).now_or_never().is_none());
    assert!(pending.try_open(entry(1, None)).is_err(), "nobody overtakes who waits");
    pending.cancel(token);
    // granted both, and one of them isn't wanted any more
    drop(large);
    let room = small.await;
    assert!(pending.try_open(entry(96, None)).is_err());
    assert!(pending.try_open(entry(95, None)).is_ok());
    drop(room);
    assert!(pending.try_open(entry(5, None)).is_ok());
}

#[tokio::test]
async fn who_needs_less_goes_on_when_the_one_before_gives_up() {
    let pending = pending();
    pending.try_open(entry(50, None)).unwrap();
    let (mut large, mut small) = (Box::pin(pending.room(60)), Box::pin(pending.room(5)));
    assert!((&mut large).now_or_never().is_none() && (&mut small).now_or_never().is_none());
    drop(large);
    let room = small.now_or_never().unwrap();
    assert!(pending.open(entry(5, None), room).is_ok());
}

#[tokio::test]
async fn a_key_has_one_turn_at_a_time() {
    let pending = pending();
    let first = pending.try_open(entry(1, Some(1))).unwrap();
    let mut turn = Box::pin(pending.until_free(1));
    assert!((&mut turn).now_or_never().is_none());
    let room = pending.room(1).await;
    let (back, room) = pending.open(entry(1, Some(1)), room).unwrap_err();
    pending.resolve(first, |_| Ok(Receipt::default()));
    turn.await;
    assert!(pending.open(back, room).is_ok());
}

#[tokio::test]
async fn room_taken_over_is_free_when_it_is_given_back() {
    let pending = pending();
    let token = pending.try_open(entry(100, None)).unwrap();
    let bytes = taken(&pending, token).unwrap();
    pending.resolve(token, |_| Ok(Receipt::default()));
    assert!(pending.try_open(entry(1, None)).is_err());
    pending.give_back(bytes);
    assert!(pending.try_open(entry(100, None)).is_ok());
}

#[tokio::test]
async fn a_failure_that_nobody_read_is_told_by_flush_once() {
    let pending = pending();
    let [early, late] = [0; 2].map(|_| pending.try_open(entry(1, None)).unwrap());
    drop(confirm(&pending, early));
    pending.resolve(early, |_| failed());
    pending.resolve(late, |_| failed());
    drop(confirm(&pending, late));
    assert!(pending.flushed().await.unwrap_err().to_string().contains("2 sends"));
    assert!(pending.flushed().await.is_ok());
}

#[tokio::test]
async fn a_flush_waits_for_what_was_opened_before_it_and_for_no_more() {
    let pending = pending();
    let [first, second] = [0; 2].map(|_| pending.try_open(entry(1, None)).unwrap());
    let (mut flush, mut other) = (Box::pin(pending.flushed()), Box::pin(pending.flushed()));
    assert!((&mut flush).now_or_never().is_none() && (&mut other).now_or_never().is_none());
    drop(other);
    let later = pending.try_open(entry(1, None)).unwrap();
    pending.resolve(second, |_| Ok(Receipt::default()));
    pending.resolve(later, |_| Ok(Receipt::default()));
    assert!((&mut flush).now_or_never().is_none());
    let more = pending.try_open(entry(1, None)).unwrap();
    pending.resolve(first, |_| Ok(Receipt::default()));
    assert!(flush.await.is_ok());
    assert_eq!(pending.unanswered(), [more]);
}

#[test]
fn overdue_are_those_whose_deadline_has_come_in_their_order() {
    let (pending, now) = (pending(), Instant::now());
    let at = |ms| NewSend { deadline: now + Duration::from_millis(ms), ..entry(1, None) };
    let tokens = [20, 10, 30].map(|ms| pending.try_open(at(ms)).unwrap());
    assert!(pending.overdue(now + Duration::from_millis(9)).is_empty());
    // until they are answered they are told each time
    for _ in 0..2 {
        assert_eq!(pending.overdue(now + Duration::from_millis(20)), tokens[..2]);
    }
    tokens[..2].iter().for_each(|token| assert!(pending.resolve(*token, |_| failed()).is_some()));
    assert!(pending.overdue(now + Duration::from_millis(29)).is_empty());
    let sooner = pending.try_open(at(25)).unwrap();
    assert_eq!(pending.overdue(now + Duration::from_millis(29)), [sooner]);
    assert_eq!(pending.overdue(now + Duration::from_millis(30)), [tokens[2], sooner]);
}

/// Counts how often it was woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open(usize, Option<u64>),
    Ask(usize),
    Withdraw(usize),
    Resolve(usize, bool),
    Cancel(usize),
    Forget(usize),
    Look(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..60_usize, proptest::option::of(0..3_u64)).prop_map(|(bytes, key)| Step::Open(bytes, key)),
        2 => (0..60_u64).prop_map(Step::Look),
        2 => (0..120_usize).prop_map(Step::Ask),
        1 => (0..8_usize).prop_map(Step::Withdraw),
        4 => (0..8_usize, any::<bool>()).prop_map(|(which, ok)| Step::Resolve(which, ok)),
        1 => (0..8_usize).prop_map(Step::Cancel),
        1 => (0..8_usize).prop_map(Step::Forget),
    ]
}

proptest! {
    /// Whatever is opened, answered and given up in whatever order: the bounds hold, nobody is forgotten, the sums are right.
    #[test]
    fn the_books_balance(steps in proptest::collection::vec(step(), 1..80)) {
        let (pending, start) = (pending(), Instant::now());
        // each is due after as many milliseconds as it has bytes
        let due = |bytes: usize| start + Duration::from_millis(bytes as u64);
        let entry = |bytes: usize, key| NewSend { deadline: due(bytes), ..entry(bytes, key) };
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let mut cx = Context::from_waker(&waker);
        // token, bytes, key, confirm
        let mut open: Vec<(u64, usize, Option<u64>, Option<Confirm>)> = Vec::new();
        let mut asking: Vec<(usize, std::pin::Pin<Box<room::Waiting<'_, u32>>>)> = Vec::new();
        let (mut confirmed, mut failures, mut unread) = (0_u64, 0_u64, 0_u64);
        for step in steps {
            let woken = bell.0.load(Relaxed);
            match step {
                Step::Open(bytes, key) => if let Ok(token) = pending.try_open(entry(bytes, key)) {
                    prop_assert!(asking.is_empty(), "it overtook who waited");
                    prop_assert!(key.is_none_or(|key| open.iter().all(|(_, _, other, _)| *other != Some(key))));
                    open.push((token, bytes, key, Some(confirm(&pending, token))));
                },
                Step::Ask(bytes) => {
                    let mut waiting = Box::pin(room::Waiting::new(&pending, bytes));
                    match waiting.as_mut().poll(&mut cx) {
                        Poll::Ready(room) => {
                            let token = pending.open(entry(bytes, None), room).unwrap();
                            open.push((token, bytes, None, Some(confirm(&pending, token))));
                        }
                        Poll::Pending => asking.push((bytes, waiting)),
                    }
                }
                Step::Withdraw(which) if !asking.is_empty() => drop(asking.remove(which % asking.len())),
                Step::Resolve(which, ok) if !open.is_empty() => {
                    let (token, _, _, confirm) = open.remove(which % open.len());
                    let outcome = if ok { Ok(Receipt::new(0, token)) } else { failed() };
                    prop_assert!(pending.resolve(token, |_| outcome).is_some());
                    if ok { confirmed += 1 } else { failures += 1 }
                    match confirm {
                        Some(confirm) => prop_assert_eq!(confirm.now_or_never().unwrap().is_ok(), ok),
                        None => unread += u64::from(!ok),
                    }
                }
                Step::Cancel(which) if !open.is_empty() => {
                    let (token, _, _, confirm) = open.remove(which % open.len());
                    prop_assert!(pending.cancel(token).is_some());
                    drop(confirm);
                }
                Step::Forget(which) if !open.is_empty() => {
                    let which = which % open.len();
                    open[which].3 = None;
                }
                Step::Look(at) => {
                    let overdue = open.iter().filter(|(_, bytes, ..)| *bytes as u64 <= at);
                    let mut overdue: Vec<_> = overdue.map(|(token, ..)| *token).collect();
                    overdue.sort_unstable();
                    prop_assert_eq!(pending.overdue(start + Duration::from_millis(at)), overdue);
                }
                _ => {}
            }
            // whoever can have room has been woken and gets it, in turn
            let mut first = true;
            while first && !asking.is_empty() {
                first = false;
                if let Poll::Ready(room) = asking[0].1.as_mut().poll(&mut cx) {
                    prop_assert!(bell.0.load(Relaxed) > woken, "nobody was woken");
                    let (bytes, _) = asking.remove(0);
                    let token = pending.open(entry(bytes, None), room).unwrap();
                    open.push((token, bytes, None, Some(confirm(&pending, token))));
                    first = true;
                }
            }
            let bytes: usize = open.iter().map(|(_, bytes, ..)| bytes).sum();
            prop_assert!(open.len() <= BOUND.messages && (bytes <= BOUND.bytes || open.len() == 1));
            let fits = |more: &usize| open.is_empty() || open.len() < BOUND.messages && bytes + more <= BOUND.bytes;
            prop_assert!(asking.first().is_none_or(|(more, _)| !fits(more)), "it waits beside room for it");
            let mut tokens: Vec<_> = open.iter().map(|(token, ..)| *token).collect();
            tokens.sort_unstable();
            prop_assert_eq!(pending.unanswered(), tokens);
        }
        let report = pending.report();
        prop_assert_eq!((report.confirmed, report.failed, report.unknown), (confirmed, failures, 0));
        asking.clear();
        for (token, ..) in open {
            prop_assert!(pending.resolve(token, |_| Ok(Receipt::default())).is_some());
        }
        let flushed = pending.flushed().now_or_never().unwrap();
        match flushed {
            Ok(()) => prop_assert_eq!(unread, 0),
            Err(error) => {
                let told = format!("{unread} sends");
                prop_assert!(error.to_string().contains(&told), "{}", error);
            }
        }
        prop_assert!(pending.table().slots.is_empty() && pending.table().keys.is_empty());
    }
}
