//! The main job, on the embedded broker: publish, handle, settle, drain. No server is needed.
//!
//! `cargo run --example quickstart`

use std::time::Duration;

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 1, key = "order_id")]
struct OrderPlaced {
    order_id: String,
    total_cents: u64,
}

#[handler(channel = "orders", group = "billing")]
async fn bill(order: OrderPlaced) {
    println!("handled: {} owes {} cents", order.order_id, order.total_cents);
}

#[tokio::main]
async fn main() -> postrider::Result<()> {
    let broker = postrider::connect("memory:").await?;
    let service = Router::new().route(bill).start(&broker).await?;
    let order = OrderPlaced { order_id: "o-1".into(), total_cents: 1999 };
    println!("published: {:?}", broker.publish("orders", &order).await?);
    service.idle().await;
    service.stop(Duration::from_secs(30)).await.map(|report| println!("settled:\n{report}"))
}
