//! Dead letters, read and closed beside all groups.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use futures_util::FutureExt as _;
use postrider_core::{
    BoxLetters, Broker, Classify, Envelope, ErrorKind, HandlerError, Letter, Letters, Origin, Reason,
    Redrive, RouteOptions,
};

use super::failure::{channel_of, dead_letters, handle, text};
use super::faults::own_broker;
use super::redrive::{handle_all, redrive_all};
use crate::kit::{Bench, PATIENCE, QUIET, number_of, within};
use crate::record::Outcome::{self, Passed, Skipped};

/// Opens the dead letters of group `g`.
pub(super) async fn open(broker: &Broker, channel: &str) -> BoxLetters {
    broker.letters(&format!("{channel}.g.dlq")).await.expect("the letters can be opened")
}

/// Up to `max` further letters.
pub(super) async fn read(letters: &mut BoxLetters, max: usize) -> Vec<Letter> {
    let mut read = Vec::new();
    let max = NonZeroUsize::new(max).expect("at least one");
    within("the letters are read", letters.read(max, &mut read)).await.expect("they can be read");
    read
}

/// Runs group `g` until nothing is left; it rejects all.
pub(super) async fn fail_all(bench: &Bench, channel: &str) {
    handle(bench, RouteOptions::new(channel, "g"), async |_: Envelope| {
        Err::<(), HandlerError>(HandlerError::msg("a bug")).permanent()
    })
    .await;
}

/// A channel with so many dead letters, numbered from 0 and in that order.
async fn channel_with_letters(bench: &Bench, count: usize) -> String {
    let channel = channel_of(bench).await;
    bench.publish_keys(&channel, &vec!["k"; count]).await;
    fail_all(bench, &channel).await;
    channel
}

fn numbers(letters: &[Letter]) -> Vec<usize> {
    letters.iter().map(|letter| number_of(&letter.envelope)).collect()
}

fn origins(letters: &[Letter]) -> Vec<Origin> {
    letters.iter().map(|letter| letter.origin).collect()
}

pub async fn reading_disturbs_no_group(bench: Bench) -> Outcome {
    let channel = channel_with_letters(&bench, 3).await;
    let mut letters = open(&bench.broker, &channel).await;
    assert_eq!(letters.count().await.expect("they are counted"), 3);
    let mut all = read(&mut letters, 2).await;
    assert_eq!(all.len(), 2, "no more than asked for");
    all.extend(read(&mut letters, 10).await);
    assert_eq!(numbers(&all), [0, 1, 2], "the oldest first");
    assert!(read(&mut letters, 10).await.is_empty(), "that is all");
    assert_eq!(letters.count().await.expect("they are counted"), 3, "to be read is to stay open");
    let failure = all[0].failure();
    assert_eq!((failure.reason, failure.error.as_deref()), (Some(Reason::Rejected), Some("a bug")));
    assert_eq!((failure.channel.as_deref(), failure.group.as_deref()), (Some(&*channel), Some("g")));
    assert_eq!((failure.attempts, failure.redrives), (Some(1), 0));
    assert!(failure.first_failed_ms.is_some() && failure.first_failed_ms <= failure.last_failed_ms);
    let place = letters.describe(all[0].origin);
    assert!(place.starts_with(bench.broker.name()) && place.contains("dlq"), "{place}");
    assert_eq!(
        dead_letters(&bench, &channel).await.take_numbers(3).await,
        [0, 1, 2],
        "the group has its own"
    );
    letters.close(&origins(&all)).await.expect("they can be closed");
    Passed
}

/// Opens the dead letters of group `g` as soon as so many are open.
async fn open_with(broker: &Broker, channel: &str, count: u64) -> BoxLetters {
    within(&format!("{count} letters are open"), async {
        loop {
            let mut letters = open(broker, channel).await;
            if letters.count().await.expect("they are counted") == count {
                return letters;
            }
            letters.leave().await.expect("it can be left");
            tokio::time::sleep(QUIET).await;
        }
    })
    .await
}

pub async fn many_closed_at_once_stay_closed(bench: Bench) -> Outcome {
    let channel = channel_with_letters(&bench, 300).await;
    let mut letters = open(&bench.broker, &channel).await;
    let all = read(&mut letters, 300).await;
    assert_eq!(all.len(), 300);
    let every_other: Vec<_> = all.iter().step_by(2).map(|letter| letter.origin).collect();
    within("they are closed", letters.close(&every_other)).await.expect("they can be closed");
    // a broker may have heard of it and not done it yet: whoever leaves at once must not undo it
    letters.leave().await.expect("it can be left");
    let mut letters = open_with(&bench.broker, &channel, 150).await;
    let rest = read(&mut letters, 300).await;
    assert_eq!(numbers(&rest), (0..300).filter(|n| n % 2 == 1).collect::<Vec<_>>(), "in their order");
    within("they are closed", letters.close(&origins(&rest))).await.expect("they can be closed");
    letters.leave().await.expect("it can be left");
    open_with(&bench.broker, &channel, 0).await;
    Passed
}

pub async fn closed_ones_stay_closed(bench: Bench) -> Outcome {
    let channel = channel_with_letters(&bench, 5).await;
    let mut letters = open(&bench.broker, &channel).await;
    let all = read(&mut letters, 5).await;
    let closed = [all[0].origin, all[3].origin];
    letters.close(&closed).await.expect("they can be closed");
    letters.close(&closed).await.expect("to close them again is harmless");
    assert_eq!(letters.count().await.expect("they are counted"), 3);
    // somebody else, somewhere else
    letters.leave().await.expect("it leaves");
    letters.close(&closed).await.expect("they are closed, whoever asks");
    let other = bench.reconnect().await;
    let mut again = open(&other, &channel).await;
    assert_eq!(again.count().await.expect("they are counted"), 3);
    let left = read(&mut again, 5).await;
    assert_eq!(numbers(&left), [1, 2, 4]);
    again.close(&origins(&left)).await.expect("they can be closed");
    // what comes later is read by those who are here
    bench.publish_keys(&channel, &["k"]).await;
    fail_all(&bench, &channel).await;
    assert_eq!(numbers(&read(&mut again, 5).await), [0]);
    assert_eq!(again.count().await.expect("they are counted"), 1);
    Passed
}

pub async fn two_readers_miss_nothing(bench: Bench) -> Outcome {
    let channel = channel_with_letters(&bench, 6).await;
    let other = bench.reconnect().await;
    let (mut one, mut two) = (open(&bench.broker, &channel).await, open(&other, &channel).await);
    let (mine, theirs) = (read(&mut one, 3).await, read(&mut two, 10).await);
    let both: BTreeSet<_> = numbers(&mine).into_iter().chain(numbers(&theirs)).collect();
    assert_eq!(both.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
    one.close(&origins(&mine)).await.expect("they can be closed");
    two.close(&origins(&theirs)).await.expect("also those that are closed");
    let mut after = open(&bench.broker, &channel).await;
    assert_eq!(after.count().await.expect("they are counted"), 0);
    assert!(read(&mut after, 10).await.is_empty());
    Passed
}

pub async fn dropped_reader_holds_nothing(bench: Bench) -> Outcome {
    let channel = channel_with_letters(&bench, 3).await;
    let mut letters = open(&bench.broker, &channel).await;
    assert_eq!(read(&mut letters, 2).await.len(), 2);
    drop(letters);
    within("all are there again", async {
        loop {
            let mut again = open(&bench.broker, &channel).await;
            let all = read(&mut again, 10).await;
            if all.len() == 3 {
                assert_eq!(numbers(&all), [0, 1, 2], "in their order");
                return;
            }
            again.leave().await.expect("it leaves");
        }
    })
    .await;
    Passed
}

/// What closing has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    Yes,
    No,
    /// It may have arrived before the connection was lost, or the call given up.
    InDoubt,
}

/// Closes, again and again while the broker can't be told.
async fn close(letters: &mut BoxLetters, which: &[Origin]) -> Closed {
    within("closing is answered", async {
        loop {
            match letters.close(which).await {
                Ok(()) => return Closed::Yes,
                Err(error) if error.is_temporary() => tokio::time::sleep(QUIET).await,
                Err(error) if error.to_string().contains("not known") => return Closed::InDoubt,
                Err(_) => return Closed::No,
            }
        }
    })
    .await
}

/// Opens the letters as soon as there is a connection.
async fn reopen(broker: &Broker, channel: &str) -> BoxLetters {
    loop {
        match broker.letters(&format!("{channel}.g.dlq")).await {
            Ok(letters) => return letters,
            Err(error) if error.is_temporary() => tokio::time::sleep(QUIET).await,
            Err(error) => panic!("the letters can't be opened: {error}"),
        }
    }
}

/// The first of three letters is closed, or isn't, as was said; all others are open. What somebody lost comes back when the broker has
/// noticed, and may come between two reads: so it has to be the same twice, and what is in doubt in any order.
async fn is_as_said(broker: &Broker, channel: &str, said: Closed) {
    let expected: &[&[usize]] = match said {
        Closed::Yes => &[&[1, 2]],
        Closed::No => &[&[0, 1, 2]],
        Closed::InDoubt => &[&[1, 2], &[0, 1, 2]],
    };
    let (mut before, mut now) = (Vec::new(), Vec::new());
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while before != now || !expected.contains(&&*now) {
        assert!(tokio::time::Instant::now() < deadline, "said to be closed: {said:?}, but there are {now:?}");
        tokio::time::sleep(QUIET).await;
        let mut other = reopen(broker, channel).await;
        let mut all = Vec::new();
        if other.read(NonZeroUsize::MAX, &mut all).await.is_ok() {
            (before, now) = (now, numbers(&all));
            if said == Closed::InDoubt {
                now.sort_unstable();
            }
        }
        other.leave().await.expect("it leaves");
    }
}

/// Cut off between reading and closing: what it says of the closing is true, and it goes on reading.
pub async fn cut_off_reader_closes_what_it_says(bench: Bench) -> Outcome {
    let Some((controls, settings)) = own_broker(&bench).await else {
        return Skipped("fault controls");
    };
    let broker = controls.connect(settings).await;
    let bench = Bench { broker: broker.clone(), ..bench };
    for noticed in [false, true] {
        let channel = channel_with_letters(&bench, 3).await;
        let mut letters = open(&broker, &channel).await;
        let first = read(&mut letters, 1).await;
        controls.proxy().cut();
        if noticed {
            // whoever begins after the loss has nothing under way that could have arrived
            let mut other = within("the connection is back", reopen(&broker, &channel)).await;
            other.leave().await.expect("it leaves");
        }
        let said = close(&mut letters, &origins(&first)).await;
        assert!(!noticed || said != Closed::InDoubt, "nothing was under way");
        letters.leave().await.expect("it leaves");
        is_as_said(&broker, &channel, said).await;
    }
    Passed
}

/// What a reader does that has given up closing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Closes,
    ReadsOn,
    Leaves,
}

/// A call that is given up may have closed it or not: the next one says what is true. Whoever reads on instead misses none of the
/// others, and whoever leaves gives them back.
pub async fn closing_given_up_is_no_lie(bench: Bench) -> Outcome {
    let all = [1, 2, 3].map(|polls| [Then::Closes, Then::ReadsOn, Then::Leaves].map(|then| (polls, then)));
    for (polls, then) in all.into_iter().flatten() {
        let channel = channel_with_letters(&bench, 3).await;
        let mut letters = open(&bench.broker, &channel).await;
        let first = origins(&read(&mut letters, 1).await);
        let mut said = Closed::InDoubt;
        {
            let mut closing = std::pin::pin!(letters.close(&first));
            for _ in 0..polls {
                if let Some(closed) = (&mut closing).now_or_never() {
                    closed.expect("it can be closed");
                    said = Closed::Yes;
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        if then == Then::ReadsOn {
            let mut seen = BTreeSet::new();
            within("the others are read", async {
                while !seen.is_superset(&BTreeSet::from([1, 2])) {
                    let mut more = Vec::new();
                    match letters.read(NonZeroUsize::MAX, &mut more).await {
                        Err(error) => assert!(error.is_temporary(), "{error}"),
                        // what a channel held comes back when the broker has noticed
                        Ok(()) if more.is_empty() => tokio::time::sleep(QUIET).await,
                        Ok(()) => {}
                    }
                    seen.extend(numbers(&more));
                }
            })
            .await;
        }
        if then == Then::Closes && said == Closed::InDoubt {
            said = close(&mut letters, &first).await;
        }
        letters.leave().await.expect("it leaves");
        is_as_said(&bench.broker, &channel, said).await;
    }
    Passed
}

pub async fn missing_channel_is_told(bench: Bench) -> Outcome {
    let error = bench.broker.letters("no.such.dlq").await.expect_err("there is no such channel");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("no.such.dlq"), "{error}");
    let error = bench.broker.letters("no such").await.expect_err("that is no name");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    Passed
}

/// A foreign message may have all the headers that its broker stores, or such as take more room in a copy; its dead letter has ours
/// besides. The largest of its own give way, the letter says so, and the route goes on.
pub async fn letter_of_large_foreign_headers(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    let huge = "v".repeat(bench.factory().foreign_header_bytes() - 100);
    bench.foreign(&channel, &[("small", "1"), ("huge", &huge)], b"\xff\0 the largest").await;
    // within all bounds as it is; what can't stand in a line is written in another way, which is longer
    let (names, value) = ((0..40).map(|n| format!("tab-{n}")).collect::<Vec<_>>(), "\tv\t".repeat(400));
    let tabs: Vec<_> = names.iter().map(|name| (&**name, &*value)).collect();
    bench.foreign(&channel, &tabs, b"\xfe\0 the growing").await;
    bench.publish_keys(&channel, &["k"; 3]).await;
    let report = handle(&bench, RouteOptions::new(&*channel, "g"), async |envelope: Envelope| {
        if envelope.payload().len() > 1 {
            return Err(HandlerError::msg("a bug")).permanent();
        }
        Ok(())
    })
    .await;
    assert_eq!((report.routes[0].handled, report.routes[0].dead_lettered), (3, 2));

    let mut letters = open(&bench.broker, &channel).await;
    let mut all = read(&mut letters, 10).await;
    letters.leave().await.expect("it can be left");
    all.sort_by_key(|letter| letter.envelope.payload().clone());
    let [growing, largest] = &all[..] else { panic!("there are two letters: {all:?}") };
    assert_eq!(&largest.envelope.payload()[..], b"\xff\0 the largest");
    assert_eq!(&growing.envelope.payload()[..], b"\xfe\0 the growing");
    assert_eq!(largest.failure().reason, Some(Reason::Oversize));
    assert_eq!(growing.failure().reason, Some(Reason::Rejected));
    for letter in &all {
        let failure = letter.failure();
        assert_eq!((failure.group.as_deref(), failure.redrives), (Some("g"), 0));
        assert!(failure.error.is_some() && failure.origin.is_some(), "there is room for that: {failure:?}");
    }
    assert_eq!(text(&largest.envelope, "small"), "1");
    let has = |letter: &Letter, name: &str| letter.envelope.headers().get(name).is_some();
    let kept = names.iter().filter(|name| has(growing, name)).count();
    assert!(kept >= 30, "{kept} of 40 is too few: no more than needed goes");
    for (letter, gone) in [(largest, usize::from(!has(largest, "huge"))), (growing, 40 - kept)] {
        if gone > 0 {
            let told = text(&letter.envelope, "postrider-dropped-headers");
            assert!(told.starts_with(&format!("{gone} of ")), "{gone} are gone: {told}");
        } else {
            assert!(!has(letter, "postrider-dropped-headers"), "nothing is gone");
        }
    }

    // the first breaks the bounds again where it has kept its headers; the other comes through
    let sent = redrive_all(&bench, &channel, &Redrive::new()).await;
    assert_eq!(sent, 2);
    let handled = handle_all(&bench, &channel).await;
    assert!(handled.iter().any(|(envelope, _)| envelope.payload() == growing.envelope.payload()));
    Passed
}
