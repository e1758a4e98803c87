#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

async fn bill(order: OrderPlaced) {}

fn main() {
    let _ = Router::new().route(bill);
}
