//! What stands at the broker before and after each run: topology and backlog, and that nothing is left and nothing is missing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::runtime::Runtime;
use tokio::time::sleep;

use crate::case::{Case, Direction, Kind, Subject};
use crate::job::{Job, Watch};
use crate::meter::Measured;
use crate::{kafka, nats, postrider, rabbitmq};

/// How long a broker may take to work off the acknowledgements that a raw loop has sent, and the time between two looks.
const PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);
/// How often what is found and shouldn't be there is removed.
const CLEARED: usize = 10;

/// Prepares and checks runs.
pub(crate) struct Ground {
    runtime: Runtime,
}

impl Ground {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { runtime: Runtime::new()? })
    }

    /// One run of a job in a process of its own, with what it needs made before, and what it left checked after. A raw loop that fails
    /// has a second try, and this is said: clients stop now and then, and a bench of an hour needn't end for it.
    pub(crate) fn run(&self, job: &Job, watch: Watch) -> Result<Measured> {
        if job.broker == Kind::Memory {
            return job.apart(watch);
        }
        let mut before = self.prepare(job)?;
        let measured = match job.apart(watch) {
            Err(error) if job.subject != Subject::Postrider => {
                eprintln!("{error:#}; once more");
                self.clear(job)?;
                before = self.prepare(job)?;
                job.apart(watch)?
            }
            ran => ran?,
        };
        let checked = self.runtime.block_on(check(job, &measured, before));
        checked.with_context(|| format!("{job}: the broker's books don't balance"))?;
        Ok(measured)
    }

    fn prepare(&self, job: &Job) -> Result<(u64, u64)> {
        self.runtime.block_on(prepare(job)).with_context(|| format!("{job}: not prepared"))
    }

    /// The runtime of what is done at the broker before and after a run.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// That nothing which a job reads is left unread or unacknowledged.
    pub(crate) fn drained(&self, job: &Job) -> Result<()> {
        let left = self.runtime.block_on(left(job))?;
        ensure!(left == 0, "{job}: all handled, but {left} are left unacknowledged");
        Ok(())
    }

    /// Removes what was made for a subject.
    pub(crate) fn clear(&self, job: &Job) -> Result<()> {
        self.runtime.block_on(clear(job)).with_context(|| format!("{job}: not cleared away"))
    }
}

/// Answers how many orders and invoices are stored before the run.
async fn prepare(job: &Job) -> Result<(u64, u64)> {
    let direction = job.case.direction();
    if !job.broker.keeps() {
        clear(job).await?;
    }
    let mut broker = postrider::declare(job).await?;
    let mut before = stored(job).await?;
    let is_right = |found: (u64, u64)| direction != Direction::Out || found.0 == 0 || found.0 == job.messages;
    for _ in 0..CLEARED {
        if is_right(before) {
            break;
        }
        // a NATS server has been seen to find messages, on its disk, of a stream of the same name that had just been removed
        clear(job).await?;
        broker = postrider::declare(job).await?;
        before = stored(job).await?;
    }
    if direction == Direction::Out {
        if before.0 == job.messages {
            rewind(job).await?;
            postrider::declare(job).await?;
            before.1 = stored(job).await?.1;
        } else {
            ensure!(before.0 == 0, "{} orders are there already", before.0);
            postrider::fill(job, &broker).await?;
            before = stored(job).await?;
            ensure!(before.0 == job.messages, "{} of {} orders are stored", before.0, job.messages);
        }
    }
    Ok(before)
}

async fn check(job: &Job, measured: &Measured, before: (u64, u64)) -> Result<()> {
    match job.case.direction() {
        Direction::In => {
            let (confirmed, stored) = (job.messages + job.first().messages, stored(job).await?.0 - before.0);
            ensure!(stored == confirmed, "{confirmed} confirmed, {stored} stored");
        }
        Direction::Out | Direction::Through => {
            // a broker may still be working off what it has read; postrider says that it is closed when the broker is through
            let patience = if job.subject == Subject::Postrider { Duration::ZERO } else { PATIENCE };
            let until = Instant::now() + patience;
            let mut left = left(job).await?;
            while left > 0 && Instant::now() < until {
                sleep(LOOK).await;
                left = self::left(job).await?;
            }
            ensure!(left == 0, "all handled, but {left} are left unacknowledged");
        }
    }
    if job.case == Case::Transform {
        let invoices = stored(job).await?.1 - before.1;
        let most = job.messages + measured.doubled;
        ensure!((job.messages..=most).contains(&invoices), "{} orders, {invoices} invoices", job.messages);
    }
    Ok(())
}

async fn clear(job: &Job) -> Result<()> {
    match job.broker {
        Kind::Memory => Ok(()),
        Kind::Nats => nats::ground::clear(job).await,
        Kind::Kafka => kafka::ground::clear(job).await,
        Kind::Rabbitmq => rabbitmq::ground::clear(job).await,
    }
}

async fn rewind(job: &Job) -> Result<()> {
    match job.broker {
        Kind::Memory | Kind::Rabbitmq => Ok(()),
        Kind::Nats => nats::ground::rewind(job).await,
        Kind::Kafka => kafka::ground::rewind(job).await,
    }
}

async fn stored(job: &Job) -> Result<(u64, u64)> {
    match job.broker {
        Kind::Memory => Ok((0, 0)),
        Kind::Nats => nats::ground::stored(job).await,
        Kind::Kafka => kafka::ground::stored(job).await,
        Kind::Rabbitmq => rabbitmq::ground::stored(job).await,
    }
}

async fn left(job: &Job) -> Result<u64> {
    match job.broker {
        Kind::Memory => Ok(0),
        Kind::Nats => nats::ground::left(job).await,
        Kind::Kafka => kafka::ground::left(job).await,
        Kind::Rabbitmq => rabbitmq::ground::left(job).await,
    }
}
