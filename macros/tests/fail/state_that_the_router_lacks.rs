#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[derive(Clone)]
struct Ledger;

#[handler(channel = "orders", group = "billing")]
async fn bill(order: OrderPlaced, State(ledger): State<Ledger>) {}

fn main() {
    let _ = Router::new().route(bill);
}
