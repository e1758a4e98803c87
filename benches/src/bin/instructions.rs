//! One kind of work, done so often: `cargo xtask instructions` has the instructions of two runs counted (`--counted`), and divides the
//! difference.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use postrider::prelude::*;
use postrider::{Bytes, Env};
use postrider_bench::valgrind;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// What can be counted.
const CASES: [&str; 4] = ["memory", "kafka", "nats", "rabbitmq"];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match run(&arguments.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[&str]) -> Result<()> {
    let (case, count) = match arguments {
        ["--list"] => {
            println!("{}", CASES.join("\n"));
            return Ok(());
        }
        ["--counted", case, count] => {
            valgrind::is_there()?;
            let program = std::env::current_exe().context("this program's path is unknown")?;
            println!("{}", valgrind::run(valgrind::counting(&program).args([case, count]))?.1);
            return Ok(());
        }
        [case, count] => (*case, count.parse().context("COUNT is a number")?),
        _ => bail!("CASE COUNT, --counted CASE COUNT, or --list"),
    };
    match case {
        "memory" => embedded(count),
        "kafka" => convert(count, postrider_kafka::fuzzing::again),
        "nats" => convert(count, postrider_nats::fuzzing::again),
        "rabbitmq" => convert(count, postrider_rabbitmq::fuzzing::again),
        _ => bail!("there is no case `{case}`; --list tells which there are"),
    }
}

/// An order of 256 bytes as JSON.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 1, key = "customer")]
struct OrderPlaced {
    customer: u64,
    note: String,
}

/// Orders that are still to be handled.
#[derive(Clone, Debug)]
struct Left(Arc<(AtomicU64, Notify)>);

#[handler(channel = "orders", group = "billing")]
async fn bill(order: OrderPlaced, State(left): State<Left>) {
    black_box(order.note);
    if left.0.0.fetch_sub(1, Relaxed) == 1 {
        left.0.1.notify_one();
    }
}

/// Publish with confirm, receive, decode, call, settle, with key order; all on one thread, so that it is the same work each time.
fn embedded(count: u64) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let broker = postrider::connect("memory:?max_messages=1000").await?;
        let left = Left(Arc::new((AtomicU64::new(count), Notify::new())));
        let service = Router::with_state(left.clone()).route(bill).start(&broker).await?;
        let mut order = OrderPlaced { customer: 0, note: "n".repeat(230) };
        for number in 0..count {
            order.customer = 100 + number % 900;
            broker.publish("orders", &order).await?;
        }
        left.0.1.notified().await;
        let report = service.stop(Duration::from_secs(30)).await?;
        ensure!(report.routes[0].handled == count, "{} of {count} were handled", report.routes[0].handled);
        Ok(())
    })
}

/// An envelope as a message of the broker's client, and that as an envelope.
fn convert(count: u64, again: impl Fn(&Envelope) -> Envelope) -> Result<()> {
    let envelope = Envelope::builder(Bytes::from(vec![b'b'; 256]))
        .type_name("order.placed")
        .version(1)
        .key("customer-17")
        .header("tenant", "acme")
        .header("region", "eu-central")
        .header("attempts", 3)
        .build(&Env::seeded(1))?;
    // an AMQP table has an order of its own
    let headers = |envelope: &Envelope| {
        let mut headers: Vec<_> = envelope.headers().iter().map(|header| format!("{header:?}")).collect();
        headers.sort();
        headers
    };
    let back = again(&envelope);
    let same = back.id() == envelope.id() && back.payload() == envelope.payload();
    ensure!(same && headers(&back) == headers(&envelope), "{envelope:?} comes back as {back:?}");
    for _ in 0..count {
        black_box(again(black_box(&envelope)));
    }
    Ok(())
}
