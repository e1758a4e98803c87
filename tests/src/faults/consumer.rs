//! The process that consumes: a handler that takes its time, and the reader of the dead letters. It drains and ends when its
//! standard input ends or on SIGTERM; a line there names the point at which it kills itself.

use std::io::{self, BufRead as _};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Result;
use postrider::ClaimId;
use postrider::prelude::*;
use postrider::redb::RedbStore;

use super::Case;
use super::order::OrderPlaced;
use crate::history::{Hold, Step, Writer};

/// What the handlers share.
#[derive(Clone, Debug, FromRef)]
struct World {
    history: Arc<Writer>,
    case: Which,
    death: Death,
}

/// The point at which the process is to die, once it was told.
#[derive(Clone, Debug, Default)]
struct Death(Arc<OnceLock<String>>);

impl Death {
    /// Dies here, if this is the point.
    fn at(&self, point: &str) {
        if self.0.get().is_some_and(|wanted| wanted == point) {
            // a signal to oneself can't fail; nothing runs after it
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

/// What is wrong with some orders.
#[derive(Clone, Copy, Debug)]
struct Which(Case);

/// Handles orders until it is told to stop, then drains.
///
/// # Errors
/// If the routes can't be started or end by themselves.
pub async fn run(url: &str, folder: &Path, name: &str, case: Case) -> Result<()> {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .with_writer(io::stderr)
        .init();
    let history = Arc::new(Writer::open(folder, name)?);
    let broker = postrider::connect(url).await?;
    let world = World { history: Arc::clone(&history), case: Which(case), death: Death::default() };
    let death = world.death.clone();
    let routes = Router::with_state(world).route(read_dead_letter);
    let routes = match case {
        Case::StoreKill => routes.route(bill_once).idempotency(RedbStore::open(folder.join("store.redb"))?),
        Case::Abort => routes.route(bill_warily),
        _ => routes.route(bill),
    };
    let mut service = routes.start(&broker).await?;
    history.write(Step::Ready)?;
    let (stop, stopped) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            // only the first word counts: one dies once
            let _ = death.0.set(line);
        }
        // the receiver is gone only when the process ends anyway
        let _ = stop.send(());
    });
    tokio::select! {
        _ = stopped => {}
        error = service.failed() => eprintln!("{name}: {error}"),
    }
    service.stop(Duration::from_secs(30)).await?;
    broker.close(Instant::now() + Duration::from_secs(30)).await;
    Ok(())
}

/// The work of an order takes 6 ms, as a call to a database would: with 8 at a time, two consumers are slower than the publisher, so
/// that there is always much in flight.
#[handler(
    channel = "orders",
    group = "billing",
    concurrency = 8,
    retry(attempts = 2, backoff = fixed("5ms"))
)]
async fn bill(order: OrderPlaced, meta: Meta, world: State<World>) -> Result<(), HandlerError> {
    work(order, meta, world.0).await
}

/// The same, each order once, whatever comes twice.
#[handler(
    channel = "orders",
    group = "billing",
    concurrency = 8,
    retry(attempts = 2, backoff = fixed("5ms")),
    idempotency = auto
)]
async fn bill_once(order: OrderPlaced, meta: Meta, world: State<World>) -> Result<(), HandlerError> {
    work(order, meta, world.0).await
}

/// The same, with an eye on what ends the process.
#[handler(
    channel = "orders",
    group = "billing",
    concurrency = 8,
    crash_limit = 5,
    retry(attempts = 2, backoff = fixed("5ms"))
)]
async fn bill_warily(order: OrderPlaced, meta: Meta, world: State<World>) -> Result<(), HandlerError> {
    work(order, meta, world.0).await
}

async fn work(order: OrderPlaced, meta: Meta, world: World) -> Result<(), HandlerError> {
    let World { history, case: Which(case), death } = world;
    let (id, hold) = (order.id(), hold(meta.claim_epoch()));
    history.write(Step::Started { id, hold })?;
    if case == Case::Abort && order.is_deadly() {
        std::process::abort();
    }
    death.at("before-effect");
    tokio::time::sleep(Duration::from_millis(6)).await;
    if matches!(case, Case::Poison | Case::DlqDown) && order.is_poison() {
        return Err(HandlerError::msg("this order never succeeds"));
    }
    history.write(Step::Effect { id, hold })?;
    death.at("after-effect");
    Ok(())
}

#[handler(channel = "orders.billing.dlq", group = "auditor", dead_letter = none)]
async fn read_dead_letter(
    order: OrderPlaced,
    State(history): State<Arc<Writer>>,
) -> Result<(), HandlerError> {
    history.write(Step::DeadLetter { id: order.id() })?;
    Ok(())
}

fn hold(claim: ClaimId) -> Hold {
    Hold { shard: claim.shard, epoch: claim.epoch }
}
