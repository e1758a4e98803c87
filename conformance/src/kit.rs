//! What cases work with: a broker of their own, fresh channels, and waits that end with a reason.

use std::collections::VecDeque;
use std::future::Future;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt;
use postrider_core::{
    BoxSubscription, Broker, Bytes, Capability, Channel, Claim, Declare, Delivery, Envelope, EnvelopeBuilder,
    Group, GroupName, PublisherExt, Running, Settlement, Signal, SubscribeOptions, Subscriber, Subscription,
};

use crate::factory::{Controls, Factory, Settings};
use crate::record::{Outcome, record};

/// How long a case waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(45);
/// How long a service may take to stop. Only one that is stuck needs it.
pub(crate) const DRAIN: Duration = Duration::from_secs(40);
/// After how long a claim ends in cases where processes end and the next one waits for their claims. A member that lives keeps
/// its claim also when a busy machine halts it for some seconds.
pub(crate) const SHORT_CLAIM: Duration = Duration::from_secs(4);
/// How long a case waits to see that something doesn't happen.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

/// One case: a name, what it needs, and what it does.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Case {
    /// The group of the documentation.
    pub group: &'static str,
    /// The case's id.
    pub name: &'static str,
    /// The capability without which the broker must refuse.
    pub needs: Option<Capability>,
}

impl Case {
    #[doc(hidden)]
    pub const fn new(group: &'static str, name: &'static str, needs: Option<Capability>) -> Self {
        Self { group, name, needs }
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// A case at work: its broker and what it asks of the factory.
#[derive(Clone)]
pub struct Bench {
    pub(crate) factory: Arc<dyn Factory>,
    /// The case's broker.
    pub broker: Broker,
    /// How it was connected.
    pub settings: Settings,
    /// What this process is to do for the case, where it isn't the case's own: see [`Bench::process`].
    pub(crate) role: Option<String>,
}

/// Tells a process which tenant's channels it shares with the case that started it, and what it is to do there.
const ROLE: &str = "POSTRIDER_CONFORMANCE_ROLE";

/// Runs a case and writes down what became of it.
#[doc(hidden)]
pub async fn run<Fut>(factory: impl Factory, case: Case, body: fn(Bench) -> Fut)
where
    Fut: Future<Output = Outcome>,
{
    let factory: Arc<dyn Factory> = Arc::new(factory);
    let (adapter, variant) = (factory.adapter(), factory.variant());
    let work = async {
        let given = std::env::var(ROLE).ok();
        let given = given.as_deref().and_then(|given| given.split_once(' '));
        let (tenant, role) = match given {
            Some((tenant, role)) => (tenant.to_owned(), Some(role.to_owned())),
            None => (unique("t"), None),
        };
        let settings = Settings { tenant, ..Settings::default() };
        let broker = factory.connect(settings.clone()).await;
        let bench = Bench { factory: Arc::clone(&factory), broker, settings, role };
        match case.needs {
            Some(capability) if !bench.broker.capabilities().has(capability) => {
                crate::groups::refusals::refused(&bench, capability).await;
                Outcome::Refused(capability.as_str())
            }
            _ => body(bench).await,
        }
    };
    match AssertUnwindSafe(work).catch_unwind().await {
        // the case that started this process says what becomes of it
        Ok(_) if std::env::var_os(ROLE).is_some() => {}
        Ok(outcome) => {
            if let Outcome::Skipped(missing) | Outcome::Refused(missing) = &outcome {
                println!("{adapter} {}.{}: {outcome:?} ({missing})", case.group, case.name);
            }
            record(adapter, variant, case.group, case.name, &outcome);
        }
        Err(panic) => {
            record(adapter, variant, case.group, case.name, &Outcome::Failed);
            std::panic::resume_unwind(panic);
        }
    }
}

/// A name that no other case has, in this process or another.
pub(crate) fn unique(prefix: &str) -> String {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    format!("{prefix}{:x}-{:x}-{}", std::process::id(), time % 0xffff_ffff, NUMBER.fetch_add(1, Relaxed))
}

/// Waits for what must happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(value) = tokio::time::timeout(PATIENCE, future).await else {
        panic!("within {PATIENCE:?} this didn't happen: {what}");
    };
    value
}

/// Asserts that a wait which a broker measured was not cut short.
///
/// The broker's clock need not agree with this process's. It may be cut to the millisecond, and Erlang's runs up to 1 % faster
/// while it catches up with the system's. What an adapter writes is checked to the millisecond by the adapter's own tests.
pub(crate) fn assert_waited(waited: Duration, wait: Duration) {
    let least = wait.mul_f64(0.99).saturating_sub(Duration::from_millis(1));
    assert!(waited >= least, "a wait of {wait:?} ended after {waited:?}");
}

/// Waits until `condition` holds, for what no event tells.
pub(crate) async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

impl Bench {
    /// A channel of the case's own, declared.
    pub(crate) async fn channel(&self) -> String {
        let name = unique("c");
        self.broker.declare(&name).await.expect("the channel is declared");
        name
    }

    /// A channel of the case's own with a group that reads it: on every broker, what is published before the group's members
    /// come is kept for them.
    pub(crate) async fn channel_for(&self, group: &str) -> String {
        self.channel_with(group, |_| {}).await
    }

    /// The same, for a group that isn't as the default.
    pub(crate) async fn channel_with(
        &self,
        group: &str,
        change: impl FnOnce(&mut SubscribeOptions),
    ) -> String {
        let name = self.channel().await;
        declare_group(&self.broker, &name, group, change).await;
        name
    }

    /// Another connection to the same channels.
    pub(crate) async fn reconnect(&self) -> Broker {
        self.factory.connect(self.settings.clone()).await
    }

    pub(crate) async fn reconnect_with(&self, change: impl FnOnce(&mut Settings)) -> Broker {
        let mut settings = self.settings.clone();
        change(&mut settings);
        self.factory.connect(settings).await
    }

    /// Runs this case once more in a process of its own, which finds `role` in its bench; answers how it ended.
    pub(crate) async fn process(&self, role: &str) -> std::process::ExitStatus {
        let thread = std::thread::current();
        // the test runner names its threads after their tests
        let name = thread.name().expect("a test has a name");
        let mut process = std::process::Command::new(std::env::current_exe().expect("a test is a program"));
        process
            .args([name, "--exact", "--include-ignored", "--nocapture"])
            .env(ROLE, format!("{} {role}", self.settings.tenant));
        let mut process = process.spawn().expect("a process starts");
        within("the process ends", async {
            loop {
                if let Some(status) = process.try_wait().expect("it is our own") {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    /// One life of a service that may be ended at any point: in a process of its own, which is aborted; where the broker lives in this
    /// one, the service is dropped. `true`: it wasn't ended and did all there was to do.
    /// Its claim ends after `claim`.
    pub(crate) async fn life<F>(
        &self,
        role: &str,
        claim: Duration,
        start: impl FnOnce(Broker, Ender) -> F,
    ) -> bool
    where
        F: Future<Output = Running>,
    {
        let broker = self.reconnect_with(|settings| settings.claim_timeout = Some(claim));
        if self.role.is_some() {
            // this is the process
            let service = start(broker.await, Arc::new(|| std::process::abort())).await;
            within("nothing is left to do", service.idle()).await;
            service.stop(DRAIN).await.expect("it stops");
            return true;
        }
        if self.factory.has_processes() {
            let status = self.process(role).await;
            assert!(status.success() || status.code().is_none(), "the process failed by itself: {status}");
            return status.success();
        }
        let (end, mut ends) = tokio::sync::watch::channel(false);
        let service = start(broker.await, Arc::new(move || _ = end.send_replace(true))).await;
        tokio::select! {
            _ = ends.wait_for(|ended| *ended) => false,
            () = service.idle() => true,
        }
    }

    pub(crate) fn factory(&self) -> &dyn Factory {
        &*self.factory
    }

    pub(crate) async fn controls(&self) -> Option<Arc<dyn Controls>> {
        self.factory.controls().await
    }

    pub(crate) async fn foreign(&self, channel: &str, headers: &[(&str, &str)], body: &'static [u8]) {
        self.factory.write_foreign(&self.settings, channel, headers, Bytes::from_static(body)).await;
    }

    /// Publishes `keys.len()` messages with these keys; the body is the number of the message.
    pub(crate) async fn publish_keys(&self, channel: &str, keys: &[&str]) {
        let numbered = keys.iter().enumerate().map(|(n, key)| number(n).key(key));
        for outcome in self.broker.publish_all(channel, numbered).await {
            outcome.expect("the message is confirmed");
        }
    }

    /// Publishes messages numbered from 0, without keys.
    pub(crate) async fn publish_count(&self, channel: &str, count: usize) {
        for outcome in self.broker.publish_all(channel, (0..count).map(number)).await {
            outcome.expect("the message is confirmed");
        }
    }

    pub(crate) async fn subscribe(&self, channel: &str, group: &str) -> Reader {
        self.subscribe_with(channel, group, |_| {}).await
    }

    pub(crate) async fn subscribe_with(
        &self,
        channel: &str,
        group: &str,
        change: impl FnOnce(&mut SubscribeOptions),
    ) -> Reader {
        subscribe(&self.broker, channel, group, change).await
    }
}

/// Ends the life of whoever calls it; what it does afterwards is to be nothing.
pub(crate) type Ender = Arc<dyn Fn() + Send + Sync>;

/// Where processes of a case leave each other something, by the name of its channel; without an extension.
pub(crate) fn scratch(channel: &str) -> PathBuf {
    std::env::temp_dir().join(format!("postrider-conformance-{channel}"))
}

/// Writes a number at the end of a file, where it stays whatever becomes of the process.
pub(crate) fn append(file: &Path, number: usize) {
    let opened = std::fs::OpenOptions::new().create(true).append(true).open(file);
    let written = opened.and_then(|mut file| file.write_all(format!("{number}\n").as_bytes()));
    written.expect("it can be written");
}

/// The numbers that were appended.
pub(crate) fn appended(file: &Path) -> Vec<usize> {
    let text = std::fs::read_to_string(file).expect("it was written");
    text.lines().map(|line| line.parse().expect("a number")).collect()
}

/// The options of a subscription.
pub(crate) fn options(channel: &str, group: &str) -> SubscribeOptions {
    let group = GroupName::new(group).expect("a good group name");
    SubscribeOptions::new(Channel::new(channel).expect("a good channel name"), Group::Named(group))
}

/// A group of one partition, whose claims end soon after its member: what [`Bench::life`] is for.
pub(crate) fn one_at_a_time(options: &mut SubscribeOptions) {
    options.partitions = Some(1);
    options.claim_timeout = Some(SHORT_CLAIM);
}

/// Declares a group and its channel.
pub(crate) async fn declare_group(
    broker: &Broker,
    channel: &str,
    group: &str,
    change: impl FnOnce(&mut SubscribeOptions),
) {
    let mut options = options(channel, group);
    change(&mut options);
    broker.declare_all(&[Declare::Group(options)]).await.expect("the group is declared");
}

pub(crate) async fn subscribe(
    broker: &Broker,
    channel: &str,
    group: &str,
    change: impl FnOnce(&mut SubscribeOptions),
) -> Reader {
    let mut options = options(channel, group);
    change(&mut options);
    if options.group.name().is_some() {
        broker.declare_all(&[Declare::Group(options.clone())]).await.expect("the group is declared");
    }
    Reader::new(broker.subscribe(&options).await.expect("the subscription starts"))
}

/// A body that is a number.
pub(crate) fn number(n: usize) -> EnvelopeBuilder {
    Envelope::builder(Bytes::from(n.to_string()))
}

/// The number in a body.
pub(crate) fn number_of(envelope: &Envelope) -> usize {
    std::str::from_utf8(envelope.payload())
        .ok()
        .and_then(|text| text.parse().ok())
        .expect("the body is a number")
}

/// A subscription that collects.
pub(crate) struct Reader {
    pub(crate) subscription: BoxSubscription,
    inbox: VecDeque<Delivery>,
    pub(crate) signals: Vec<Signal>,
}

impl Reader {
    fn new(subscription: BoxSubscription) -> Self {
        Self { subscription, inbox: VecDeque::new(), signals: Vec::new() }
    }

    /// One call of `receive`.
    pub(crate) async fn receive(&mut self, max: usize) -> Signal {
        let mut into = Vec::new();
        let max = NonZeroUsize::new(max).expect("at least one");
        let signal = self.subscription.receive(max, &mut into).await.expect("the subscription goes on");
        self.inbox.extend(into);
        signal
    }

    /// The next `count` deliveries.
    pub(crate) async fn take(&mut self, count: usize) -> Vec<Delivery> {
        let what = format!("{count} deliveries come");
        within(&what, async {
            while self.inbox.len() < count {
                let signal = self.receive(count - self.inbox.len()).await;
                if signal != Signal::Deliveries {
                    self.signals.push(signal);
                }
            }
        })
        .await;
        self.inbox.drain(..count).collect()
    }

    /// The next `count` messages' numbers, acknowledged.
    pub(crate) async fn take_numbers(&mut self, count: usize) -> Vec<usize> {
        let taken = self.take(count).await;
        let numbers = taken.iter().map(|delivery| number_of(&delivery.envelope)).collect();
        settle(taken, Settlement::Ack);
        numbers
    }

    /// All that was received and not taken.
    pub(crate) fn drain(&mut self) -> Vec<Delivery> {
        self.inbox.drain(..).collect()
    }

    /// The next message, acknowledged.
    pub(crate) async fn one(&mut self) -> Envelope {
        let delivery = self.take(1).await.pop().expect("one");
        let envelope = delivery.envelope.clone();
        delivery.claim.settle(Settlement::Ack).expect("the claim holds");
        envelope
    }

    /// Asserts that nothing more comes for a while.
    pub(crate) async fn nothing(&mut self) {
        let more = tokio::time::timeout(QUIET, async {
            while self.inbox.is_empty() {
                let signal = self.receive(16).await;
                if signal != Signal::Deliveries {
                    self.signals.push(signal);
                }
            }
        });
        assert!(
            more.await.is_err(),
            "nothing more was to come, but {:?} did",
            self.inbox.front().map(|d| d.envelope.id())
        );
    }

    pub(crate) async fn flush(&self, claim: &Claim) {
        let tracker = claim.tracker().expect("an open claim").clone();
        within("the settlements reach the broker", tracker.flush()).await.expect("nothing was stale");
    }

    pub(crate) async fn close(mut self) {
        self.inbox.clear();
        within("the subscription closes", self.subscription.close()).await.expect("it closes in good order");
    }
}

/// Settles all in one call.
pub(crate) fn settle(deliveries: Vec<Delivery>, how: Settlement) {
    let mut batch = deliveries.into_iter().map(|delivery| (delivery.claim, how)).collect();
    Claim::settle_all(&mut batch).expect("nothing is stale");
}
