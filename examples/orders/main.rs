//! A shop: orders go to billing and to shipping, billing's invoices to the ledger. Some orders fail, panic or can't be read;
//! they are retried or end in the dead letters. The same source runs on every broker that is compiled in.
//!
//! `cargo run --example orders`, or on a NATS server
//! `POSTRIDER_URL=nats://127.0.0.1:4222 cargo run --example orders --no-default-features --features nats`.
//!
//! `--orders N` sets how many (200), `--tenant NAME` keeps runs on one broker apart (a fresh one each run), `--serve` keeps
//! the service running until Ctrl-C.

mod shop;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postrider::prelude::*;
use postrider::{Bytes, Report};
use tracing_subscriber::filter::LevelFilter;

use shop::{OrderPlaced, Shop};

/// What the command line says.
struct Arguments {
    orders: u64,
    tenant: String,
    serve: bool,
}

#[tokio::main]
async fn main() -> postrider::Result<()> {
    let arguments = arguments().unwrap_or_else(|problem| {
        eprintln!("orders: {problem}\nusage: orders [--orders N] [--tenant NAME] [--serve]");
        std::process::exit(2)
    });
    // what the library warns of goes to standard error; a service would log INFO as well
    tracing_subscriber::fmt().with_max_level(LevelFilter::WARN).with_writer(std::io::stderr).init();
    // some orders make the handler panic: that is one line here, not a stack trace
    std::panic::set_hook(Box::new(|panic| eprintln!("{panic}")));
    let url = std::env::var("POSTRIDER_URL").unwrap_or_else(|_| "memory:".into());
    let joint = if url.contains('?') { '&' } else { '?' };
    let broker = postrider::connect(&format!("{url}{joint}tenant={}", arguments.tenant)).await?;

    let router = shop::router(Shop::default());
    println!("{}\n", router.describe()?);
    if arguments.serve {
        println!("serving on {}; Ctrl-C stops", broker.name());
        let report = router.run(broker).await?;
        summary(&report);
        return Ok(());
    }
    let service = router.start(&broker).await?;
    publish(&broker, arguments.orders).await?;
    service.idle().await;
    let report = service.stop(Duration::from_secs(30)).await?;
    summary(&report);
    Ok(())
}

/// Publishes the orders, pipelined, and a few bodies that are no order at all.
async fn publish(broker: &Broker, orders: u64) -> postrider::Result<()> {
    let numbers: Vec<u64> = (1..=orders).collect();
    for chunk in numbers.chunks(100) {
        let placed: Vec<_> = chunk.iter().map(|number| OrderPlaced::number(*number)).collect();
        for outcome in broker.publish_all("orders", &placed).await {
            outcome?;
        }
    }
    let unreadable = orders / 90;
    for number in 0..unreadable {
        let body =
            Envelope::builder(Bytes::from_static(b"{\"order_id\":")).type_name("order.placed").version(1);
        broker.publish("orders", body.key(format!("broken-{number}"))).await?;
    }
    println!(
        "published {orders} orders and {unreadable} that can't be read, all confirmed by {}\n",
        broker.name()
    );
    Ok(())
}

/// One line a group, the same on every broker and in every run.
fn summary(report: &Report) {
    let mut routes: Vec<_> = report.routes.iter().collect();
    routes.sort_by(|a, b| a.group.cmp(&b.group));
    println!("group handled retried dead-lettered");
    for route in routes {
        println!("{} {} {} {}", route.group, route.handled, route.retried, route.dead_lettered);
    }
}

fn arguments() -> Result<Arguments, String> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let mut arguments = Arguments { orders: 200, tenant: format!("shop-{since:x}"), serve: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--orders" => {
                arguments.orders =
                    value()?.parse().map_err(|_| "--orders takes a whole number".to_string())?;
            }
            "--tenant" => arguments.tenant = value()?,
            "--serve" => arguments.serve = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    Ok(arguments)
}
