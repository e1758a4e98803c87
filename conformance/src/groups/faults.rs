//! The broker dies, connections break, members and channels come and go: what was confirmed is handled all the same.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postrider_core::{
    Broker, Confirm, Envelope, HealthState, PublishOptions, PublisherExt, RouteOptions, Router, Running,
    Settlement,
};

use crate::factory::{Controls, Doomed, Settings};
use crate::kit::{
    Bench, DRAIN, Ender, SHORT_CLAIM, append, appended, declare_group, eventually, number, number_of,
    one_at_a_time, scratch, settle, subscribe, unique, within,
};
use crate::record::Outcome::{self, Passed, Skipped};

/// How soon a claim ends here.
const CLAIM: Duration = SHORT_CLAIM;

/// The numbers of all messages that were handled.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeSet<usize>>>);

impl Seen {
    fn has(&self, number: usize) -> bool {
        self.0.lock().expect("nobody panicked").contains(&number)
    }

    fn count(&self) -> usize {
        self.0.lock().expect("nobody panicked").len()
    }

    async fn all(&self, confirmed: &BTreeSet<usize>) {
        eventually("every confirmed message is handled", || {
            confirmed.is_subset(&self.0.lock().expect("nobody panicked"))
        })
        .await;
    }
}

/// A service that writes down what it handles, each after `work`.
async fn serve(broker: &Broker, channel: &str, seen: &Seen, work: Duration) -> Running {
    let seen = seen.clone();
    let handler = move |envelope: Envelope| {
        let seen = seen.clone();
        async move {
            if !work.is_zero() {
                tokio::time::sleep(work).await;
            }
            seen.0.lock().expect("nobody panicked").insert(number_of(&envelope));
        }
    };
    let route = RouteOptions::new(channel, "g").claim_timeout(CLAIM).handle(handler);
    Router::new().route(route).start(broker).await.expect("it starts")
}

/// A broker of the case's own, and a connection to it through the proxy.
pub(super) async fn own_broker(bench: &Bench) -> Option<(Arc<dyn Controls>, Settings)> {
    let controls = bench.controls().await?;
    let mut settings = bench.settings.clone();
    settings.claim_timeout = Some(CLAIM);
    Some((controls, settings))
}

async fn enqueue(broker: &Broker, channel: &str, n: usize) -> Confirm {
    broker.enqueue(channel, number(n).key(format!("k{}", n % 50))).await
}

/// Those that are confirmed in the end.
async fn confirmed(confirms: Vec<(usize, Confirm)>) -> BTreeSet<usize> {
    let mut confirmed = BTreeSet::new();
    for (number, confirm) in confirms {
        if within("the confirm is resolved", confirm).await.is_ok() {
            confirmed.insert(number);
        }
    }
    confirmed
}

async fn stop(service: Running) {
    service.stop(DRAIN).await.expect("it stops");
}

pub async fn broker_killed_while_publishing(bench: Bench) -> Outcome {
    let Some((controls, settings)) = own_broker(&bench).await else {
        return Skipped("fault controls");
    };
    let broker = controls.connect(settings).await;
    let channel = unique("c");
    declare_group(&broker, &channel, "g", |options| options.claim_timeout = Some(CLAIM)).await;
    controls.settled().await;
    let mut confirms = Vec::new();
    for n in 0..3000 {
        if n == 1500 {
            controls.kill().await;
            controls.start().await;
        }
        confirms.push((n, enqueue(&broker, &channel, n).await));
    }
    let confirmed = confirmed(confirms).await;
    assert!(confirmed.len() >= 1500, "{} are confirmed: all that came after the kill", confirmed.len());
    // nobody has read yet: what is confirmed is on the broker's disk
    let seen = Seen::default();
    let service = serve(&broker, &channel, &seen, Duration::ZERO).await;
    seen.all(&confirmed).await;
    stop(service).await;
    Passed
}

pub async fn broker_killed_while_consuming(bench: Bench) -> Outcome {
    let Some((controls, settings)) = own_broker(&bench).await else {
        return Skipped("fault controls");
    };
    let broker = controls.connect(settings).await;
    let channel = unique("c");
    declare_group(&broker, &channel, "g", |options| options.claim_timeout = Some(CLAIM)).await;
    controls.settled().await;
    let mut confirms = Vec::new();
    for n in 0..3000 {
        confirms.push((n, enqueue(&broker, &channel, n).await));
    }
    let confirmed = confirmed(confirms).await;
    assert_eq!(confirmed.len(), 3000);
    let seen = Seen::default();
    let service = serve(&broker, &channel, &seen, Duration::from_millis(5)).await;
    eventually("some are handled", || seen.count() >= 300).await;
    controls.kill().await;
    controls.start().await;
    seen.all(&confirmed).await;
    stop(service).await;
    Passed
}

pub async fn connection_reset_each_second(bench: Bench) -> Outcome {
    const RESETS: usize = 8;
    let Some((controls, settings)) = own_broker(&bench).await else {
        return Skipped("fault controls");
    };
    let broker = controls.connect(settings).await;
    let channel = unique("c");
    let seen = Seen::default();
    let service = serve(&broker, &channel, &seen, Duration::ZERO).await;
    let (mut confirms, mut n) = (Vec::new(), 0);
    let mut between = BTreeSet::new();
    for _ in 0..RESETS {
        let until = tokio::time::Instant::now() + Duration::from_secs(1);
        while tokio::time::Instant::now() < until {
            confirms.push((n, enqueue(&broker, &channel, n).await));
            n += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // a busy machine may need longer than a second to connect
        let one = one_confirmed(&broker, &channel, &mut n);
        between.insert(within("a message is confirmed before the next reset", one).await);
        controls.proxy().reset();
    }
    let last = one_confirmed(&broker, &channel, &mut n);
    let last = within("publishing goes on after the last reset", last).await;
    let mut confirmed = confirmed(confirms).await;
    let connections = controls.proxy().connections();
    assert!(connections > RESETS as u64, "{RESETS} resets, but {connections} connections");
    confirmed.extend(between);
    confirmed.insert(last);
    seen.all(&confirmed).await;
    stop(service).await;
    Passed
}

/// Nobody closes the connection, and nothing comes any more: only silence tells.
pub async fn half_open_connection_is_found(bench: Bench) -> Outcome {
    let Some((controls, _)) = own_broker(&bench).await else {
        return Skipped("fault controls");
    };
    let broker = controls.connect(bench.settings.clone()).await;
    let channel = unique("c");
    let seen = Seen::default();
    let service = serve(&broker, &channel, &seen, Duration::ZERO).await;
    enqueue(&broker, &channel, 0).await.await.expect("it is confirmed");
    eventually("it is handled", || seen.has(0)).await;
    controls.proxy().stall(true);
    // a client that has nothing to say may notice late
    let mut options = PublishOptions::default();
    options.deadline = Some(Duration::from_mins(1));
    let waiting = broker.publish_with(&*channel, number(1).key("k1"), options);
    let found = async {
        while broker.health().state == HealthState::Up {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::pin!(waiting);
    let silence = async {
        tokio::select! {
            () = found => None,
            outcome = &mut waiting => Some(outcome),
        }
    };
    let early = within("the silence is noticed", silence).await;
    // the old connections are as dead as before; new ones work
    controls.proxy().cut();
    controls.proxy().stall(false);
    let outcome = match early {
        Some(outcome) => outcome,
        None => within("the publish has its outcome", waiting).await,
    };
    let next = async { while enqueue(&broker, &channel, 2).await.await.is_err() {} };
    within("publishing goes on", next).await;
    eventually("what came afterwards is handled", || seen.has(2)).await;
    if outcome.is_ok() {
        eventually("what was confirmed is handled", || seen.has(1)).await;
    }
    stop(service).await;
    Passed
}

/// Publishes further numbers until one is confirmed, and answers that.
async fn one_confirmed(broker: &Broker, channel: &str, next: &mut usize) -> usize {
    loop {
        let number = *next;
        *next += 1;
        if enqueue(broker, channel, number).await.await.is_ok() {
            return number;
        }
    }
}

pub async fn members_come_and_go(bench: Bench) -> Outcome {
    const ROUNDS: usize = 6;
    let mut settings = bench.settings.clone();
    settings.claim_timeout = Some(CLAIM);
    let channel = unique("c");
    let declare = |options: &mut postrider_core::SubscribeOptions| options.claim_timeout = Some(CLAIM);
    let staying = bench.factory().connect(settings.clone()).await;
    declare_group(&staying, &channel, "g", declare).await;
    let seen = Seen::default();
    let service = serve(&staying, &channel, &seen, Duration::from_millis(1)).await;
    let mut all = BTreeSet::new();
    for round in 0..ROUNDS {
        let other = bench.factory().connect(settings.clone()).await;
        let mut member = subscribe(&other, &channel, "g", declare).await;
        for n in round * 200..round * 200 + 200 {
            enqueue(&staying, &channel, n).await.await.expect("it is confirmed");
            all.insert(n);
        }
        // what it happens to get is done, and some of it is left undone
        let share = tokio::time::timeout(Duration::from_millis(300), member.take(20)).await;
        if let Ok(mut mine) = share {
            let undone = mine.split_off(10);
            let mut seen = seen.0.lock().expect("nobody panicked");
            seen.extend(mine.iter().map(|delivery| number_of(&delivery.envelope)));
            drop(seen);
            for delivery in mine {
                // a halt of the machine may have cost the claim: then it comes again, to the one that stays
                let _ = delivery.claim.settle(Settlement::Ack);
            }
            drop(undone);
        }
        if round % 2 == 0 {
            member.close().await;
        } else {
            // gone without a word
            drop(member);
        }
        seen.all(&all).await;
    }
    stop(service).await;
    Passed
}

pub async fn channel_deleted_and_made_again(bench: Bench) -> Outcome {
    let channel = bench.channel_with("g", |options| options.claim_timeout = Some(CLAIM)).await;
    let seen = Seen::default();
    let service = serve(&bench.broker, &channel, &seen, Duration::ZERO).await;
    enqueue(&bench.broker, &channel, 0).await.await.expect("it is confirmed");
    eventually("it is handled", || seen.has(0)).await;
    if !bench.factory().delete(&bench.settings, Doomed::Channel(&channel)).await {
        return Skipped("a way to delete a channel");
    }
    flows_again(&bench, &channel, &seen).await;
    stop(service).await;
    Passed
}

pub async fn group_deleted_by_the_server(bench: Bench) -> Outcome {
    let channel = bench.channel_with("g", |options| options.claim_timeout = Some(CLAIM)).await;
    let seen = Seen::default();
    let service = serve(&bench.broker, &channel, &seen, Duration::ZERO).await;
    enqueue(&bench.broker, &channel, 0).await.await.expect("it is confirmed");
    eventually("it is handled", || seen.has(0)).await;
    if !bench.factory().delete(&bench.settings, Doomed::Group(&channel, "g")).await {
        return Skipped("a way to delete a group that is read");
    }
    flows_again(&bench, &channel, &seen).await;
    stop(service).await;
    Passed
}

/// New messages are handled, once somebody has seen to it that the channel is there.
async fn flows_again(bench: &Bench, channel: &str, seen: &Seen) {
    let again = async {
        for n in 1.. {
            // it may still be going, or be coming back by itself
            let declared = bench.broker.declare(channel).await;
            let sent = enqueue(&bench.broker, channel, n).await.await;
            let handled = async {
                while !seen.has(n) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            if declared.is_ok()
                && sent.is_ok()
                && tokio::time::timeout(Duration::from_secs(2), handled).await.is_ok()
            {
                break;
            }
        }
    };
    within("new messages are handled", again).await;
}

/// Out of memory, a broker takes no more messages, but still hears what is done with.
pub async fn alarm_blocks_publishing_only(bench: Bench) -> Outcome {
    let Some((controls, mut settings)) = own_broker(&bench).await else {
        return Skipped("fault controls");
    };
    // the reader keeps what it holds, also where the machine halts for some seconds
    settings.claim_timeout = Some(Duration::from_secs(20));
    let broker = controls.connect(settings).await;
    let channel = unique("c");
    let mut reader = subscribe(&broker, &channel, "g", |options| options.partitions = Some(1)).await;
    for n in 0..50 {
        enqueue(&broker, &channel, n).await.await.expect("it is confirmed");
    }
    if !controls.alarm(true).await {
        return Skipped("an alarm that blocks publishing");
    }
    let mut options = PublishOptions::default();
    // a command that gives an alarm, or takes it away, may run for long on a busy machine
    options.deadline = Some(Duration::from_mins(5));
    let waiting = tokio::spawn({
        let (broker, channel) = (broker.clone(), channel.clone());
        async move { broker.publish_with(&*channel, number(50).key("k0"), options).await }
    });
    eventually("the alarm shows", || broker.health().state == HealthState::Degraded).await;
    settle(reader.take(50).await, Settlement::Ack);
    let control = postrider_core::Subscription::control(&reader.subscription);
    let lag = async { while control.lag().await.expect("it is told") > 1 {} };
    within("acknowledgements pass", lag).await;
    controls.alarm(false).await;
    within("the publish goes on", waiting).await.expect("nobody panicked").expect("it is confirmed");
    assert_eq!(reader.take_numbers(1).await, [50]);
    assert_eq!(broker.health().state, HealthState::Up);
    Passed
}

/// Before which message and after which one's effect a process is ended.
const ENDS: [(&str, usize); 2] = [("before", 1), ("after", 3)];
/// How many messages there are, all of one key.
const MESSAGES: usize = 6;

/// A service that ends before or after the effect of one message; a number in a file is an effect.
async fn deadly(broker: Broker, end: Ender, role: &str) -> Running {
    let mut words = role.split(' ').map(str::to_owned);
    let mut word = || words.next().expect("a channel, a point and a number");
    let (channel, point, last) = (word(), word(), word());
    let (file, last) = (scratch(&channel), last.parse().unwrap_or(usize::MAX));
    let handler = move |envelope: Envelope| {
        let (end, number) = (Arc::clone(&end), number_of(&envelope));
        let at = |here: &str| point == here && number == last;
        let (before, after) = (at("before"), at("after"));
        if before {
            end();
        } else {
            append(&file, number);
        }
        if after {
            end();
        }
        async move {
            if before || after {
                std::future::pending::<()>().await;
            }
        }
    };
    let options = RouteOptions::new(&*channel, "g").partitions(1).concurrency(1);
    let route = options.claim_timeout(SHORT_CLAIM).handle(handler);
    Router::new().route(route).start(&broker).await.expect("it starts")
}

pub async fn consumer_killed_around_its_effect(bench: Bench) -> Outcome {
    if let Some(role) = &bench.role {
        bench.life(role, SHORT_CLAIM, |broker, end| deadly(broker, end, role)).await;
        return Passed;
    }
    let channel = bench.channel_with("g", one_at_a_time).await;
    bench.publish_keys(&channel, &["k"; MESSAGES]).await;
    let (file, mut lives) = (scratch(&channel), Vec::new());
    for (point, number) in ENDS.into_iter().chain([("never", 0)]) {
        let role = format!("{channel} {point} {number}");
        let through = bench.life(&role, SHORT_CLAIM, |broker, end| deadly(broker, end, &role)).await;
        assert_eq!(through, point == "never", "{role}");
        lives.push(appended(&file));
        std::fs::remove_file(&file).expect("it is there");
    }
    assert_eq!(lives[0], [0], "the first one ends before the effect of its second message");
    for life in &lives[1..] {
        // each begins with what was begun and not acknowledged, and goes on in order
        assert!(life[0] <= 1 || life[0] == 3, "{lives:?}");
        assert!(life.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{lives:?}");
    }
    assert_eq!((lives[1].last(), lives[2].last()), (Some(&3), Some(&(MESSAGES - 1))));
    Passed
}

/// An account is closed and opened again while a service runs on it.
pub async fn credentials_taken_away_and_given_back(bench: Bench) -> Outcome {
    let Some(server) = bench.factory().revocable().await else {
        return Skipped("a server with accounts");
    };
    let broker = server.connect(bench.settings.clone()).await;
    let channel = unique("c");
    declare_group(&broker, &channel, "g", |options| options.claim_timeout = Some(CLAIM)).await;
    let seen = Seen::default();
    let service = serve(&broker, &channel, &seen, Duration::ZERO).await;
    enqueue(&broker, &channel, 0).await.await.expect("it is confirmed");
    eventually("it is handled", || seen.has(0)).await;
    server.revoke().await;
    eventually("it shows", || broker.health().state > HealthState::Up).await;
    let mut options = PublishOptions::default();
    options.deadline = Some(Duration::from_secs(1));
    let refused = broker.publish_with(&*channel, number(1).key("k1"), options).await;
    assert!(refused.is_err(), "nobody may publish: {refused:?}");
    let shown = format!("{:?} {refused:?}", broker.health());
    assert!(!shown.contains("s3cret"), "{shown}");
    server.restore().await;
    let next = async { while enqueue(&broker, &channel, 2).await.await.is_err() {} };
    within("publishing goes on", next).await;
    eventually("and so does handling", || seen.has(2)).await;
    eventually("nothing more is said of it", || broker.health().state == HealthState::Up).await;
    stop(service).await;
    Passed
}
