//! The embedded broker: publish, receive, decode, call, settle; beside a bare bounded tokio channel that sends, receives,
//! decodes and calls. The same bound, the same JSON, two tasks on one runtime.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use postrider::Bytes;
use postrider::prelude::*;
use tokio::runtime::Builder;
use tokio::sync::{Notify, mpsc};

use crate::order::OrderPlaced;

/// What both keep at most.
const BOUND: usize = 10_000;

/// What the handler counts.
#[derive(Clone, Debug, Default)]
struct Count(Arc<(AtomicU64, AtomicU64, Notify)>);

impl Count {
    fn of(messages: u64) -> Self {
        Self(Arc::new((AtomicU64::new(0), AtomicU64::new(messages), Notify::new())))
    }

    fn add(&self, order: &OrderPlaced) {
        black_box(order.total_cents);
        let (count, wanted, done) = &*self.0;
        if count.fetch_add(1, Relaxed) + 1 == wanted.load(Relaxed) {
            done.notify_one();
        }
    }
}

#[handler(channel = "orders", group = "billing")]
async fn bill(order: OrderPlaced, State(count): State<Count>) {
    count.add(&order);
}

/// postrider: publish with confirm, key order on, the annotated handler, settled.
pub(crate) async fn postrider(messages: u64) -> Result<Duration> {
    let broker = postrider::connect(&format!("memory:?max_messages={BOUND}")).await?;
    let count = Count::of(messages);
    let service = Router::with_state(count.clone()).route(bill).start(&broker).await?;
    let began = Instant::now();
    let mut order = OrderPlaced::template();
    let publishing = async {
        for number in 0..messages {
            order.number(number);
            broker.publish("orders", &order).await?;
        }
        anyhow::Ok(())
    };
    publishing.await?;
    count.0.2.notified().await;
    let took = began.elapsed();
    service.idle().await;
    let report = service.stop(Duration::from_secs(30)).await?;
    ensure!(report.routes[0].handled == messages, "{} of {messages} were handled", report.routes[0].handled);
    Ok(took)
}

/// The fastest honest loop on a bounded channel: no envelope, no key, no settlement; what comes at once is taken at once.
pub(crate) async fn best(messages: u64) -> Result<Duration> {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(BOUND);
    let count = Count::of(messages);
    let began = Instant::now();
    let consumer = tokio::spawn({
        let count = count.clone();
        async move {
            let mut bodies = Vec::with_capacity(256);
            while receiver.recv_many(&mut bodies, 256).await > 0 {
                for body in bodies.drain(..) {
                    count.add(&serde_json::from_slice(&body)?);
                }
            }
            anyhow::Ok(())
        }
    });
    let mut order = OrderPlaced::template();
    for number in 0..messages {
        order.number(number);
        sender.send(Bytes::from(serde_json::to_vec(&order)?)).await?;
    }
    count.0.2.notified().await;
    let took = began.elapsed();
    drop(sender);
    consumer.await??;
    Ok(took)
}

/// Allocations a message, publish and handle together: on one thread, where they can be counted, and without what a run
/// allocates once.
pub(crate) fn allocations<F: Future<Output = Result<Duration>>>(subject: impl Fn(u64) -> F) -> Result<f64> {
    const FEW: u64 = 1_000;
    const MANY: u64 = 21_000;
    let count = |messages| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut outcome = Ok(Duration::ZERO);
        let counted = allocation_counter::measure(|| outcome = runtime.block_on(subject(messages)));
        outcome.map(|_| counted.count_total)
    };
    Ok((count(MANY)? - count(FEW)?) as f64 / (MANY - FEW) as f64)
}
