//! The driver of a run: starts the processes, keeps as much in flight as a kill needs, does harm as planned, waits for the end.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use postrider_conformance::proxy::Proxy;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use super::plan::{Harm, Planned, Point, plan};
use super::totals::Totals;
use super::{CLAIM_TIMEOUT, Case, Size, outage, script, unheard};
use crate::checker::{Bounds, Histories, check};
use crate::history::{Id, Reader, Step, Target, Writer, now};

/// How many messages the publisher may be ahead of the handlers.
const AHEAD: u64 = 4_000;
/// How much must be in flight for a harm.
const LEAST_IN_FLIGHT: u64 = 500;
/// How many messages it is ahead by at least while harm is to come.
const LEAST_AHEAD: u64 = 1_200;
/// How many messages are kept back for each harm to come, so that there are confirms after it.
const RESERVE: u64 = 1_500;
/// How many of those in any case.
const LEAST_RESERVE: u64 = 200;
/// How long RabbitMQ is given to write down what was declared; no event tells when it has.
const DECLARED: Duration = Duration::from_secs(3);
/// How long the dead-letter channel takes nothing.
const CLOSED: Duration = Duration::from_secs(20);
/// How long the broker is paused at least.
const PAUSED_AT_LEAST: Duration = Duration::from_millis(500);
/// The time between two looks at the histories.
const LOOK: Duration = Duration::from_millis(10);
/// A run in which nothing happens for so long has failed.
const PATIENCE: Duration = Duration::from_secs(90);

/// What to run.
#[derive(Debug)]
pub struct Run {
    /// The broker's name, as the project's script knows it.
    pub broker: String,
    /// Its URL for the processes of the run, through the proxy where there is one.
    pub url: String,
    /// The broker's own.
    pub broker_url: String,
    /// Keeps the run's channels apart from those of other runs.
    pub tenant: String,
    /// Where its connections can be cut.
    pub proxy: Option<Proxy>,
    /// What is done to it.
    pub case: Case,
    /// How much.
    pub size: Size,
    /// Decides the schedule.
    pub seed: u64,
    /// Where the histories are kept; emptied at the start.
    pub folder: PathBuf,
}

/// Runs one case and compares the histories.
///
/// # Errors
/// If a process can't be started or ends by itself, the broker can't be killed or started, or nothing happens for 90 s.
pub async fn run(run: Run) -> Result<Totals> {
    if run.folder.exists() {
        std::fs::remove_dir_all(&run.folder).context("the last run's histories can't be removed")?;
    }
    std::fs::create_dir_all(&run.folder)
        .with_context(|| format!("{} can't be made", run.folder.display()))?;
    let harms = u64::from(run.size.harms());
    if u64::from(run.size.messages) < AHEAD + RESERVE * harms {
        bail!("{harms} kills, pauses and cuts need at least {} messages", AHEAD + RESERVE * harms);
    }
    let once = run.case == Case::StoreKill;
    let unheard = unheard(&run.broker);
    let bounds = Bounds { claim_timeout: CLAIM_TIMEOUT, unheard, least_in_flight: LEAST_IN_FLIGHT, once };
    let planned = (run.size.broker_kills as usize, run.size.consumer_kills as usize);
    let (case, broker, seed) = (run.case, run.broker.clone(), run.seed);
    let began = now();
    let mut driver = Driver::new(run)?;
    let mut complaints = Vec::new();
    if case == Case::Storm {
        complaints = driver.storm().await?;
    } else {
        driver.drive().await?;
    }
    let verdict = check(&driver.histories, &bounds);
    for (what, ids) in [
        ("lost", &verdict.lost),
        ("phantom", &verdict.phantom),
        ("inverted", &verdict.inverted),
        ("doubled without a kill to explain it", &verdict.doubled_unexplained),
    ] {
        for id in ids.iter().take(5) {
            eprintln!("{what}: number {} of key {}", id.number, id.key);
        }
    }
    let mut totals = Totals::of(&verdict, &bounds, planned, began);
    for complaint in complaints {
        eprintln!("{complaint}");
        totals.ok = false;
    }
    Ok(Totals { case: Some(case.name().into()), broker, seed, ..totals })
}

pub(super) struct Driver {
    pub(super) run: Run,
    pub(super) history: Writer,
    publisher: Option<Child>,
    pub(super) consumers: BTreeMap<u32, Child>,
    started: u32,
    cuts: u32,
    readers: BTreeMap<String, Reader>,
    pub(super) histories: Histories,
    pub(super) counts: Counts,
}

/// What the histories come to so far.
#[derive(Default)]
pub(super) struct Counts {
    sent: HashSet<Id>,
    pub(super) confirmed: HashSet<Id>,
    /// Handled or dead-lettered.
    pub(super) done: HashSet<Id>,
    ready: HashSet<String>,
    /// Who made the latest effect.
    busiest: Option<String>,
    granted: u64,
    /// Harms to come.
    to_come: u64,
}

impl Counts {
    fn add(&mut self, process: &str, step: Step) {
        match step {
            Step::Ready => drop(self.ready.insert(process.to_owned())),
            Step::Send { id } => drop(self.sent.insert(id)),
            Step::Confirmed { id } => drop(self.confirmed.insert(id)),
            Step::Effect { id, .. } => {
                self.done.insert(id);
                if self.busiest.as_deref() != Some(process) {
                    self.busiest = Some(process.to_owned());
                }
            }
            Step::DeadLetter { id } => drop(self.done.insert(id)),
            _ => {}
        }
    }

    fn in_flight(&self) -> u64 {
        (self.sent.len() as u64).saturating_sub(self.done.len() as u64)
    }
}

impl Driver {
    fn new(run: Run) -> Result<Self> {
        let history = Writer::open(&run.folder, "driver")?;
        let readers = BTreeMap::from([("driver".to_owned(), Reader::new(&run.folder, "driver"))]);
        Ok(Self {
            run,
            history,
            publisher: None,
            consumers: BTreeMap::new(),
            started: 0,
            cuts: 0,
            readers,
            histories: Histories::new(),
            counts: Counts::default(),
        })
    }

    async fn drive(&mut self) -> Result<()> {
        // the file of a store is one process's
        let consumers = if self.run.case == Case::StoreKill { 1 } else { 2 };
        for _ in 0..consumers {
            self.start_and_wait().await?;
        }
        if self.run.broker == "rabbitmq" {
            // a queue that was declared a moment before its only node is killed is lost, which is the broker's matter
            self.pass(DECLARED).await?;
        }
        self.publish().await?;
        let harms = plan(self.run.size, AHEAD, self.run.seed);
        self.counts.to_come = harms.len() as u64;
        for harm in harms {
            let due = |counts: &Counts| {
                counts.done.len() as u64 >= harm.handled && counts.in_flight() >= LEAST_IN_FLIGHT
            };
            self.wait("enough is handled and in flight for the next kill", due).await?;
            self.harm(harm).await?;
        }
        let all = self.run.size.messages as usize;
        self.wait("all messages are confirmed and handled", |counts| {
            counts.confirmed.len() == all && counts.done.is_superset(&counts.confirmed)
        })
        .await?;
        self.end().await
    }

    /// Starts the publisher.
    pub(super) async fn publish(&mut self) -> Result<()> {
        let messages = self.run.size.messages.to_string();
        self.publisher = Some(self.spawn("publisher", &["publish", "--messages", &messages])?);
        self.wait("the publisher starts", |counts| counts.ready.contains("publisher")).await
    }

    /// Does harm, waits, brings back, and waits until confirms and effects go on.
    async fn harm(&mut self, planned: Planned) -> Result<()> {
        self.counts.to_come -= 1;
        let (confirmed, done) = (self.counts.confirmed.len(), self.counts.done.len());
        match planned.harm {
            Harm::KillBroker => self.kill_broker(planned.away).await?,
            Harm::KillConsumer(point) => self.kill_consumer(point, planned.away).await?,
            Harm::PauseBroker => self.pause_broker(planned.away * 2 + PAUSED_AT_LEAST).await?,
            Harm::Cut => self.cut()?,
            Harm::Replace => self.replace().await?,
            Harm::CloseLetters => self.close_letters().await?,
        }
        let goes_on = |counts: &Counts| counts.confirmed.len() > confirmed && counts.done.len() > done;
        self.wait("confirms and effects go on", goes_on).await
    }

    async fn kill_broker(&mut self, away: Duration) -> Result<()> {
        self.begin(Target::Broker)?;
        script::brokers("kill", &self.run.broker).await?;
        self.history.write(Step::Dead { target: Target::Broker })?;
        self.pass(away).await?;
        script::brokers("start", &self.run.broker).await?;
        Ok(self.history.write(Step::Back { target: Target::Broker })?)
    }

    async fn pause_broker(&mut self, away: Duration) -> Result<()> {
        self.begin(Target::Pause)?;
        script::brokers("pause", &self.run.broker).await?;
        self.history.write(Step::Dead { target: Target::Pause })?;
        self.pass(away).await?;
        script::brokers("resume", &self.run.broker).await?;
        Ok(self.history.write(Step::Back { target: Target::Pause })?)
    }

    /// Cuts every connection: in turn by an orderly close and by a reset.
    fn cut(&mut self) -> Result<()> {
        self.begin(Target::Cut)?;
        let proxy = self.run.proxy.as_ref().context("there is no proxy to cut at")?;
        self.cuts += 1;
        if self.cuts % 2 == 1 {
            proxy.cut();
        } else {
            proxy.reset();
        }
        self.history.write(Step::Dead { target: Target::Cut })?;
        Ok(self.history.write(Step::Back { target: Target::Cut })?)
    }

    async fn close_letters(&mut self) -> Result<()> {
        let target = Target::Letters;
        self.begin(target)?;
        outage::close(&self.run, true).await?;
        self.history.write(Step::Dead { target })?;
        self.pass(CLOSED).await?;
        outage::close(&self.run, false).await?;
        Ok(self.history.write(Step::Back { target })?)
    }

    async fn kill_consumer(&mut self, point: Point, away: Duration) -> Result<()> {
        let number = self.busiest()?;
        let target = Target::Consumer(number);
        let mut child = self.consumers.remove(&number).context("the consumer is one that runs")?;
        self.begin(target)?;
        if let (Some(word), Some(input)) = (point.word(), child.stdin.as_mut()) {
            input.write_all(format!("{word}\n").as_bytes()).await?;
            let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
            ended.with_context(|| format!("{} doesn't come to {word}", consumer(number)))??;
        } else {
            child.kill().await?;
        }
        self.history.write(Step::Dead { target })?;
        self.pass(away).await?;
        self.start_and_wait().await?;
        Ok(self.history.write(Step::Back { target })?)
    }

    /// One consumer drains, and another comes. No double is explained by that.
    async fn replace(&mut self) -> Result<()> {
        let number = self.busiest()?;
        let child = self.consumers.remove(&number).context("the consumer is one that runs")?;
        self.drain(number, child).await?;
        self.start_and_wait().await
    }

    pub(super) async fn start_and_wait(&mut self) -> Result<()> {
        let number = self.start_consumer()?;
        self.wait("a consumer starts", |counts| counts.ready.contains(&consumer(number))).await
    }

    pub(super) fn begin(&mut self, target: Target) -> Result<()> {
        self.read()?;
        let in_flight = self.counts.in_flight();
        Ok(self.history.write(Step::Kill { target, in_flight })?)
    }

    /// How long something is away is part of the schedule.
    pub(super) async fn pass(&mut self, away: Duration) -> Result<()> {
        let until = Instant::now() + away;
        self.wait("the victim has been away for as long as planned", |_| Instant::now() >= until).await
    }

    fn busiest(&self) -> Result<u32> {
        let name = self.counts.busiest.as_deref().unwrap_or_default();
        let busiest = self.consumers.keys().find(|number| consumer(**number) == name);
        busiest.or_else(|| self.consumers.keys().next()).copied().context("no consumer runs")
    }

    pub(super) fn start_consumer(&mut self) -> Result<u32> {
        self.started += 1;
        let child = self.spawn(&consumer(self.started), &["consume", "--case", self.run.case.name()])?;
        self.consumers.insert(self.started, child);
        Ok(self.started)
    }

    fn spawn(&mut self, name: &str, role: &[&str]) -> Result<Child> {
        let program = std::env::current_exe().context("this program's path is unknown")?;
        let folder = &self.run.folder;
        self.readers.insert(name.to_owned(), Reader::new(folder, name));
        let errors = std::fs::File::create(folder.join(format!("{name}.log")))?;
        let mut command = Command::new(program);
        command.args(role).args(["--url", &self.run.url, "--name", name, "--folder"]).arg(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(errors).kill_on_drop(true);
        command.spawn().with_context(|| format!("{name} can't be started"))
    }

    /// Reads histories and gives credit until `reached`.
    pub(super) async fn wait(&mut self, what: &str, reached: impl Fn(&Counts) -> bool) -> Result<()> {
        let mut last = Instant::now();
        loop {
            if self.read()? {
                last = Instant::now();
            }
            self.give_credit().await?;
            if reached(&self.counts) {
                return Ok(());
            }
            self.look_after()?;
            if last.elapsed() > PATIENCE {
                let (confirmed, done) = (self.counts.confirmed.len(), self.counts.done.len());
                for id in self.counts.confirmed.difference(&self.counts.done).take(5) {
                    eprintln!("confirmed and not handled: number {} of key {}", id.number, id.key);
                }
                bail!(
                    "nothing has happened for {} s while waiting until {what}: {confirmed} confirmed, {done} handled; the logs of the processes are in {}",
                    PATIENCE.as_secs(),
                    self.run.folder.display()
                );
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn read(&mut self) -> Result<bool> {
        let mut news = false;
        for (name, reader) in &mut self.readers {
            let entries = reader.read().with_context(|| format!("the history of {name} can't be read"))?;
            for entry in &entries {
                self.counts.add(name, entry.step);
            }
            news |= !entries.is_empty();
            self.histories.entry(name.clone()).or_default().extend(entries);
        }
        Ok(news)
    }

    async fn give_credit(&mut self) -> Result<()> {
        let (messages, done) = (u64::from(self.run.size.messages), self.counts.done.len() as u64);
        let most = messages - self.counts.to_come * RESERVE;
        // where all that was to be sent before the next harm is handled already, it gets what it needs to fall on
        let least = (done + LEAST_AHEAD).min(messages - self.counts.to_come * LEAST_RESERVE);
        let credit = (done + AHEAD).min(most).max(least);
        if let Some(input) = self.publisher.as_mut().and_then(|child| child.stdin.as_mut())
            && credit > self.counts.granted
        {
            self.counts.granted = credit;
            // a publisher that has sent everything is gone, and needs none
            let _ = input.write_all(format!("{credit}\n").as_bytes()).await;
        }
        Ok(())
    }

    /// A process that ends by itself ends the run, unless it is its messages that end it: then another takes its place.
    fn look_after(&mut self) -> Result<()> {
        let mut aborted = Vec::new();
        for (number, child) in &mut self.consumers {
            if let Some(status) = child.try_wait()? {
                if self.run.case == Case::Abort && status.code().is_none() {
                    aborted.push(*number);
                    continue;
                }
                bail!(
                    "{} ended by itself ({status}); see {}",
                    consumer(*number),
                    log(&self.run.folder, &consumer(*number))
                );
            }
        }
        for number in aborted {
            let target = Target::Consumer(number);
            self.begin(target)?;
            self.consumers.remove(&number);
            self.history.write(Step::Dead { target })?;
            self.start_consumer()?;
            self.history.write(Step::Back { target })?;
        }
        if let Some(status) = self.publisher.as_mut().map(Child::try_wait).transpose()?.flatten() {
            if !status.success() {
                bail!("the publisher ended with {status}; see {}", log(&self.run.folder, "publisher"));
            }
            self.publisher = None;
        }
        Ok(())
    }

    /// Lets the consumers drain, and reads what they still had to say: a double that comes late is seen, too.
    pub(super) async fn end(&mut self) -> Result<()> {
        for (number, child) in std::mem::take(&mut self.consumers) {
            self.drain(number, child).await?;
        }
        self.read()?;
        Ok(())
    }

    /// Lets a consumer end in good order; the run goes on meanwhile.
    async fn drain(&mut self, number: u32, mut child: Child) -> Result<()> {
        drop(child.stdin.take());
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > until {
                bail!("{} doesn't drain", consumer(number));
            }
            self.read()?;
            self.give_credit().await?;
            tokio::time::sleep(LOOK).await;
        };
        if !status.success() {
            let name = consumer(number);
            bail!("{name} ended with {status} when it drained; see {}", log(&self.run.folder, &name));
        }
        Ok(())
    }
}

pub(super) fn consumer(number: u32) -> String {
    crate::checker::consumer(number)
}

fn log(folder: &Path, name: &str) -> String {
    folder.join(format!("{name}.log")).display().to_string()
}
