//! One point of a curve: a process of its own that is told where it stands, and says what it found.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use postrider::{Broker, Report, Running, Scope};

use super::load::{self, Load};
use super::{Curve, drain, parked};
use crate::case::{Case, Kind, Subject};
use crate::job::{Job, found};
use crate::meter::Measured;
use crate::order::CUSTOMERS;

const DEADLINE: Duration = Duration::from_mins(1);
/// What the embedded broker keeps in the channels of many routes.
const KEPT: u64 = 128_000;

/// What a process that measures one point is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct Point {
    #[arg(long)]
    pub(super) broker: Kind,
    #[arg(long)]
    pub(super) curve: Curve,
    /// postrider, or the best loop that does the same, of messages in flight on the embedded broker
    #[arg(long, default_value = "postrider")]
    pub(super) subject: Subject,
    /// Where on the curve
    #[arg(long)]
    pub(super) at: u64,
    /// Messages that are handled before the measuring begins
    #[arg(long)]
    pub(super) warm: u64,
    /// Messages that are measured
    #[arg(long)]
    pub(super) messages: u64,
    /// Bytes of JSON
    #[arg(long, default_value_t = 256)]
    pub(super) payload: usize,
    #[arg(long, default_value = "memory:")]
    pub(super) url: String,
}

impl Point {
    /// What the grounds of the cases go by: the same names, topology and checks, with default options, which keep the order of keys.
    pub(super) fn job(&self) -> Job {
        Job {
            broker: self.broker,
            case: Case::ConsumeKeyed,
            subject: Subject::Postrider,
            payload: self.payload,
            messages: self.warm + self.messages,
            rate: None,
            url: self.url.clone(),
            keys: CUSTOMERS,
            counted: false,
            count: None,
        }
    }

    /// Where its service connects to.
    pub(super) fn address(&self) -> String {
        match (self.broker, self.curve) {
            (Kind::Memory, curve) => {
                let held = match curve {
                    // the same in all channels together
                    Curve::Routes => KEPT / self.at,
                    curve if curve.stands() => self.warm + self.messages,
                    _ => 10_000,
                };
                format!("memory:?max_messages={held}&max_bytes={}", 64_u64 << 30)
            }
            // it is of one partition, and all that are in flight may be of one
            (Kind::Nats, Curve::InFlight) => {
                format!(
                    "{}?tenant={}&max_ack_pending={}",
                    self.url,
                    self.job().subject.name(),
                    self.at + 4_096
                )
            }
            _ => format!("{}?tenant={}", self.url, self.job().subject.name()),
        }
    }

    /// Measures it in this process.
    pub(crate) fn here(self) -> Result<Measured> {
        // where both ends are in one process, how often two threads get into each other's way is a matter of luck, and no growth
        let threads = if self.broker == Kind::Memory && self.curve != Curve::Workers { 1 } else { 2 };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
        let point = Arc::new(self);
        runtime.block_on(async { tokio::spawn(async move { point.run().await }).await? })
    }

    async fn run(&self) -> Result<Measured> {
        let load = Load::of(self);
        match (self.subject, self.curve, self.broker) {
            (Subject::Postrider, ..) => {}
            (Subject::Best, Curve::InFlight, Kind::Memory) => return parked::run(self, &load).await,
            (subject, ..) => bail!("{self}: there is no such curve of {}", subject.name()),
        }
        let broker = postrider::connect(&self.address()).await?;
        if self.curve == Curve::Backlog {
            return drain::run(self, &broker, &load).await;
        }
        if self.curve.stands() && self.broker == Kind::Memory {
            broker.declare(crate::job::ORDERS).await?;
            load::send(self, &broker, 0..self.warm + self.messages).await?;
        }
        let service = load.router(self).start(&broker).await?;
        if !self.curve.stands() {
            load::send(self, &broker, 0..self.warm + self.messages).await?;
        }
        load.tally.full().await;
        self.end(&broker, service).await?;
        found(&load.tally)
    }

    /// Stops the service, and sees to it that it has handled all, and left nothing.
    pub(super) async fn end(&self, broker: &Broker, service: Running) -> Result<()> {
        service.idle().await;
        if self.broker == Kind::Memory {
            nothing_left(broker).await?;
        }
        let report = service.stop(DEADLINE).await?;
        let sum = |of: fn(&postrider::RouteReport) -> u64| report.routes.iter().map(of).sum::<u64>();
        let (all, handled) = (self.warm + self.messages, sum(|route| route.handled));
        check_ends(&report, sum(|route| route.dead_lettered), sum(|route| route.retried))?;
        ensure!(handled >= all, "{handled} of {all} were handled");
        Ok(())
    }

    /// Starts the process that measures it.
    pub(super) fn apart(&self) -> Result<Child> {
        let program = std::env::current_exe().context("this program's path is unknown")?;
        let mut command = Command::new(&program);
        command.args(["grow", "--broker", self.broker.name(), "--curve", self.curve.name()]);
        command.args(["--subject", self.subject.name()]);
        command.args(["--at", &self.at.to_string(), "--warm", &self.warm.to_string()]);
        command.args(["--messages", &self.messages.to_string(), "--payload", &self.payload.to_string()]);
        command.args(["--url", &self.url]).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().with_context(|| format!("{} could not be run", program.display()))
    }
}

fn check_ends(report: &Report, dead_lettered: u64, retried: u64) -> Result<()> {
    ensure!(report.drained && dead_lettered == 0 && retried == 0, "{report}");
    Ok(())
}

/// What the grounds of real brokers look at from outside, asked of the broker in this process.
async fn nothing_left(broker: &Broker) -> Result<()> {
    let inventory = broker.inventory(&Scope::Everything).await?;
    let groups = inventory.channels.iter().flat_map(|channel| &channel.groups);
    let left: u64 = groups.filter_map(|group| group.lag).sum();
    ensure!(left == 0, "all handled, but {left} are left unsettled");
    Ok(())
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let subject = if self.subject == Subject::Best { ", best" } else { "" };
        write!(f, "{}{subject}: {} {}", self.broker.name(), self.at, self.curve.unit())
    }
}
