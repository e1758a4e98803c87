//! One run of one subject: what it is told, and what the loops of all brokers have in common.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::case::{Case, Kind, Subject};
use crate::meter::{CountAllocations, Measured, Meter};
use crate::order::{CUSTOMERS, OrderPlaced};
use crate::tally::Tally;
use crate::{kafka, memory, nats, postrider, rabbitmq, valgrind};

/// How many messages `publish-all` hands over at once.
pub(crate) const BATCH: u64 = 500;
/// The channel that is published to, or read.
pub(crate) const ORDERS: &str = "orders";
/// The channel of what a transforming handler makes.
pub(crate) const INVOICES: &str = "invoices";
/// The group that reads orders.
pub(crate) const BILLING: &str = "billing";

/// A run takes seconds, under valgrind minutes; after so long it stands still.
const LONGEST: Duration = Duration::from_mins(2);
const LONGEST_COUNTED: Duration = Duration::from_mins(15);

/// What a process that runs one subject is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct Job {
    #[arg(long)]
    pub(crate) broker: Kind,
    #[arg(long)]
    pub(crate) case: Case,
    #[arg(long)]
    pub(crate) subject: Subject,
    /// Bytes of JSON
    #[arg(long)]
    pub(crate) payload: usize,
    #[arg(long)]
    pub(crate) messages: u64,
    /// Messages a second; as fast as possible unless said
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    #[arg(long, default_value = "memory:")]
    pub(crate) url: String,
    /// How many keys the messages have
    #[arg(long, default_value_t = CUSTOMERS)]
    pub(crate) keys: u64,
    /// Under valgrind, so it takes long
    #[arg(long)]
    pub(crate) counted: bool,
    #[arg(skip)]
    pub(crate) count: Option<CountAllocations>,
}

/// How a run is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Time, processor time and memory.
    Time,
    /// The same under an allocator that counts.
    Allocations,
    /// Instructions, under valgrind: a fiftieth as fast, so time says nothing.
    Instructions,
}

impl Job {
    /// How many sends the usual loop collects before it awaits them all.
    pub(crate) fn collected(&self) -> usize {
        match self.case {
            Case::PublishOne => 1,
            Case::PublishAll => BATCH as usize,
            _ => 1_000,
        }
    }

    /// Runs it in this process.
    pub(crate) fn here(self) -> Result<Measured> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let job = Arc::new(self);
        let longest = if job.counted { LONGEST_COUNTED } else { LONGEST };
        let ran = runtime.block_on(async {
            let running = tokio::spawn(async move { job.run().await });
            let Ok(ran) = tokio::time::timeout(longest, running).await else {
                bail!("it was not at its end after {longest:?}");
            };
            ran?
        });
        // what stands still isn't waited for
        runtime.shutdown_background();
        ran
    }

    async fn run(&self) -> Result<Measured> {
        match (self.subject, self.broker) {
            (Subject::Postrider, _) => postrider::run(self).await,
            (Subject::Usual, Kind::Nats) => nats::usual::run(self).await,
            (Subject::Usual, Kind::Kafka) => kafka::usual::run(self).await,
            (Subject::Usual, Kind::Rabbitmq) => rabbitmq::usual::run(self).await,
            (Subject::Best | Subject::Bare, Kind::Nats) => nats::best::run(self).await,
            (Subject::Best | Subject::Bare | Subject::Narrow, Kind::Kafka) => kafka::best::run(self).await,
            (Subject::Best | Subject::Bare, Kind::Rabbitmq) => rabbitmq::best::run(self).await,
            (Subject::Best, Kind::Memory) => memory::run(self).await,
            (subject, kind) => bail!("there is no {} on {}", subject.name(), kind.name()),
        }
    }

    /// Runs it in a process of its own, so that processor time, memory, allocations and instructions are its own.
    pub(crate) fn apart(&self, watch: Watch) -> Result<Measured> {
        let mut program = std::env::current_exe().context("this program's path is unknown")?;
        if watch == Watch::Allocations {
            program.set_file_name("postrider-bench-allocations");
        }
        let mut command = match watch {
            Watch::Instructions => valgrind::counting(&program),
            Watch::Time | Watch::Allocations => Command::new(&program),
        };
        command.args(["run", "--broker", self.broker.name(), "--case", self.case.name()]);
        command.args(["--subject", self.subject.name(), "--payload", &self.payload.to_string()]);
        command.args(["--messages", &self.messages.to_string(), "--url", &self.url]);
        command.args(["--keys", &self.keys.to_string()]);
        if let Some(rate) = self.rate {
            command.args(["--rate", &rate.to_string()]);
        }
        let mut instructions = None;
        let output = if watch == Watch::Instructions {
            let ran = valgrind::run(command.arg("--counted"));
            let (output, counted) = ran.with_context(|| format!("{self} can't be counted"))?;
            instructions = Some(counted);
            output
        } else {
            let output = command.stderr(Stdio::inherit()).output();
            output.with_context(|| format!("{} could not be run", program.display()))?
        };
        ensure!(output.status.success(), "{self} has failed");
        let said = serde_json::from_slice(&output.stdout);
        Ok(Measured { instructions, ..said.with_context(|| format!("{self} said something unreadable"))? })
    }

    pub(crate) fn tally(&self) -> Tally {
        Tally::of(self.messages, self.case == Case::Latency, self.count)
    }

    pub(crate) fn order(&self) -> OrderPlaced {
        OrderPlaced::template(self.payload).among(self.keys)
    }

    /// The one message that is sent before what only publishes is measured, so that connecting is left out on every client.
    pub(crate) fn first(&self) -> Self {
        Self { messages: 1, case: Case::PublishOne, ..self.clone() }
    }

    /// Measures what only publishes; [`Job::first`] was sent before.
    pub(crate) async fn publishing(&self, publish: impl Future<Output = Result<()>>) -> Result<Measured> {
        let meter = Meter::new(self.count);
        meter.begin();
        publish.await?;
        Ok(meter.end(self.messages))
    }
}

impl std::fmt::Display for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { broker, case, subject, payload, .. } = self;
        write!(f, "{} {} {} B: {}", broker.name(), case.name(), payload, subject.name())
    }
}

/// What a tally found once its subject has stopped.
pub(crate) fn found(tally: &Tally) -> Result<Measured> {
    tally.measured().context("not every message was handled")
}
