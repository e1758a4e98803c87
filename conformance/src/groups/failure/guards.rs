//! Routes whose breaker, rate or bulkhead makes messages wait: nobody loses a message or an attempt by it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use postrider_core::{
    Attempt, Backoff, BreakerPolicy, BreakerState, Bulkhead, BulkheadPolicy, Envelope, Jitter, PublisherExt,
    RatePolicy, Retry, RouteOptions, Router, Running,
};
use tokio::sync::watch;

use super::{channel_of, dead_letters, quick, text};
use crate::kit::{Bench, DRAIN, declare_group, eventually, number, within};
use crate::record::Outcome::{self, Passed};

/// How many messages each of these cases has.
const COUNT: usize = 40;

/// What the handlers call, and what calls it.
#[derive(Clone)]
struct Service {
    /// So many calls fail; all later ones succeed.
    failing: usize,
    /// Calls after the first three wait until it is open.
    probing: watch::Sender<bool>,
    /// Of each call the number of the attempt, and when it began.
    calls: Arc<Mutex<Vec<(u32, Instant)>>>,
}

impl Service {
    fn new(failing: usize) -> Self {
        Self { failing, probing: watch::Sender::new(false), calls: Arc::default() }
    }

    fn calls(&self) -> Vec<(u32, Instant)> {
        self.calls.lock().expect("nobody panicked").clone()
    }

    /// A route that calls it, one message after the other, and stops when three calls have failed.
    async fn start(&self, bench: &Bench, channel: &str, open_for: Duration) -> Running {
        let policy = BreakerPolicy::new().consecutive_failures(3).open_for(open_for).probes(1);
        // more attempts than calls that fail: on a slow broker one message may have all of them
        let options = RouteOptions::new(channel, "g").name("call").retry(quick(5)).concurrency(1);
        let service = self.clone();
        let handler = move |_: Envelope, attempt: Attempt| {
            let call = {
                let mut calls = service.calls.lock().expect("nobody panicked");
                calls.push((attempt.0, Instant::now()));
                calls.len()
            };
            let (fails, mut probing) = (call <= service.failing, service.probing.subscribe());
            async move {
                if call > 3 {
                    probing.wait_for(|open| *open).await.expect("the case lives");
                }
                if fails { Err("no answer") } else { Ok(()) }
            }
        };
        let route = options.breaker(policy).handle(handler);
        Router::new().route(route).start(&bench.broker).await.expect("it starts")
    }
}

async fn publish(bench: &Bench, channel: &str) {
    let messages = (0..COUNT).map(|n| number(n).key(format!("k{n}")));
    assert!(bench.broker.publish_all(channel, messages).await.iter().all(Result::is_ok));
}

async fn becomes(states: &mut watch::Receiver<BreakerState>, wanted: BreakerState) {
    let what = format!("the breaker is {wanted:?}");
    within(&what, states.wait_for(|state| *state == wanted)).await.expect("it lives");
}

pub async fn breaker_pauses_probes_and_closes(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    publish(&bench, &channel).await;
    // three calls open it, and the first probe fails
    let service = Service::new(4);
    let running = service.start(&bench, &channel, Duration::from_secs(1)).await;
    let breaker = running.breaker("call").expect("it has one");
    let mut states = breaker.watch();
    becomes(&mut states, BreakerState::Open).await;
    let told = || running.health().routes.remove(0).health.reason.unwrap_or_default();
    eventually("health tells of it", || told().contains("circuit breaker")).await;
    // back-offs have long ended when the first probe is made
    eventually("there is a probe", || service.calls().len() > 3).await;
    service.probing.send_replace(true);
    becomes(&mut states, BreakerState::Closed).await;
    within("nothing is left to do", running.idle()).await;
    let report = running.stop(DRAIN).await.expect("it stops").routes.remove(0);
    assert_eq!((report.handled, report.retried, report.dead_lettered), (COUNT as u64, 4, 0));
    let calls = service.calls();
    assert_eq!(
        calls.len(),
        COUNT + 4,
        "three calls and a probe have failed, and nothing was tried while it was open: {calls:?}"
    );
    // the probe that failed is one of the three where the broker hadn't sent another message before they failed
    let most = calls[3].0 + 1;
    assert!(calls.iter().all(|(attempt, _)| *attempt <= most), "{calls:?}");
    // three calls opened it, one probe failed, another closed it; a clock that is read a little later is allowed for
    for [(_, before), (_, probe)] in [[calls[2], calls[3]], [calls[3], calls[4]]] {
        let paused = probe - before;
        assert!(paused >= Duration::from_millis(990), "a call after {paused:?}");
    }
    Passed
}

pub async fn breaker_open_and_drain(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    publish(&bench, &channel).await;
    let service = Service::new(3);
    let running = service.start(&bench, &channel, Duration::from_hours(1)).await;
    let breaker = running.breaker("call").expect("it has one");
    becomes(&mut breaker.watch(), BreakerState::Open).await;
    let report = within("it stops", running.stop(DRAIN)).await.expect("it stops");
    assert!(report.drained, "it didn't wait for the breaker: {report:?}");
    assert_eq!((service.calls().len(), breaker.state()), (3, BreakerState::Open), "there was no probe");
    service.probing.send_replace(true);
    let running = service.start(&bench, &channel, Duration::from_hours(1)).await;
    within("nothing is left to do", running.idle()).await;
    let report = running.stop(DRAIN).await.expect("it stops").routes.remove(0);
    assert_eq!((report.handled, report.dead_lettered), (COUNT as u64, 0));
    Passed
}

pub async fn rate_limit_holds(bench: Bench) -> Outcome {
    const BURST: u32 = 5;
    const PER_SECOND: u32 = 20;
    let channel = channel_of(&bench).await;
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = Arc::clone(&times);
    let rate = RatePolicy::new(PER_SECOND, Duration::from_secs(1)).burst(BURST);
    let route = RouteOptions::new(&*channel, "g").rate(rate).handle(move |_: Envelope| {
        noted.lock().expect("nobody panicked").push(Instant::now());
        std::future::ready(())
    });
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    // joining the group takes its time, which is not the rate's
    bench.broker.publish(&*channel, number(COUNT)).await.expect("it is confirmed");
    within("the first is handled", service.idle()).await;
    let began = Instant::now();
    publish(&bench, &channel).await;
    within("nothing is left to do", service.idle()).await;
    let report = service.stop(DRAIN).await.expect("it stops");
    assert_eq!((report.routes[0].handled, report.routes[0].retried), (COUNT as u64 + 1, 0));
    let times = times.lock().expect("nobody panicked");
    // a message that was admitted in time and noted late takes nothing from the others' span
    for (before, at) in times.iter().skip(1).enumerate() {
        let most = (*at - began).as_secs_f64() * f64::from(PER_SECOND) + f64::from(BURST);
        assert!((before + 1) as f64 <= most, "{} in {:?}", before + 1, *at - began);
    }
    Passed
}

pub async fn full_bulkhead_leaves_the_others(bench: Bench) -> Outcome {
    let channel = channel_of(&bench).await;
    declare_group(&bench.broker, &channel, "h", |_| {}).await;
    publish(&bench, &channel).await;
    let (open, opens) = watch::channel(false);
    let (runs, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (running, highest) = (Arc::clone(&runs), Arc::clone(&most));
    let slow = move |_: Envelope| {
        let (mut opens, running, highest) = (opens.clone(), Arc::clone(&running), Arc::clone(&highest));
        async move {
            highest.fetch_max(running.fetch_add(1, Relaxed) + 1, Relaxed);
            opens.wait_for(|open| *open).await.expect("the case lives");
            running.fetch_sub(1, Relaxed);
        }
    };
    let quick = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&quick);
    let bulkhead = Bulkhead::new(BulkheadPolicy::new(2));
    let service = Router::new()
        .route(RouteOptions::new(&*channel, "g").bulkhead(&bulkhead).handle(slow))
        .route(RouteOptions::new(&*channel, "h").handle(move |_: Envelope| {
            counted.fetch_add(1, Relaxed);
            std::future::ready(())
        }))
        .start(&bench.broker)
        .await
        .expect("it starts");
    eventually("the bulkhead is full", || runs.load(Relaxed) == 2 && bulkhead.free() == 0).await;
    eventually("the other route handles all", || quick.load(Relaxed) == COUNT).await;
    assert_eq!(service.report().routes[0].handled, 0);
    open.send_replace(true);
    within("nothing is left to do", service.idle()).await;
    let report = service.stop(DRAIN).await.expect("it stops");
    assert_eq!(report.routes.iter().map(|r| r.handled).collect::<Vec<_>>(), [COUNT as u64; 2]);
    assert_eq!((most.load(Relaxed), bulkhead.free()), (2, 2));
    Passed
}

pub async fn total_retry_time_is_bounded(bench: Bench) -> Outcome {
    const CEILING: Duration = Duration::from_secs(1);
    const WAIT: Duration = Duration::from_millis(50);
    let channel = channel_of(&bench).await;
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = Arc::clone(&times);
    let retry = Retry::new().attempts(10_000).backoff(Backoff::Fixed(WAIT)).jitter(Jitter::None);
    let route = RouteOptions::new(&*channel, "g").retry(retry.max_elapsed(CEILING));
    let route = route.handle(move |_: Envelope| {
        noted.lock().expect("nobody panicked").push(Instant::now());
        std::future::ready(Err::<(), _>("no luck"))
    });
    let service = Router::new().route(route).start(&bench.broker).await.expect("it starts");
    let began = Instant::now();
    bench.broker.publish(&*channel, number(1).key("k")).await.expect("it is confirmed");
    within("nothing is left to do", service.idle()).await;
    let ended = Instant::now();
    let report = service.stop(DRAIN).await.expect("it stops");
    assert_eq!(report.routes[0].dead_lettered, 1);
    let letter = dead_letters(&bench, &channel).await.one().await;
    assert_eq!(text(&letter, "postrider-dlq-reason"), "exhausted");
    let times = times.lock().expect("nobody panicked");
    // it is given up only when the next attempt would come after the ceiling
    assert!(ended - began >= CEILING.saturating_sub(WAIT), "given up after {:?}", ended - began);
    // each attempt is decided on when the one before has failed, and none after the ceiling; a busy machine may begin it late
    let decided = times[times.len().saturating_sub(2)];
    assert!(decided - times[0] <= CEILING, "an attempt after {:?}", decided - times[0]);
    let most = 1 + CEILING.as_millis() / WAIT.as_millis();
    assert!(times.len() as u128 <= most, "{} attempts", times.len());
    Passed
}
