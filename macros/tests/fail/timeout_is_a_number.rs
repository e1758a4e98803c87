#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(channel = "orders", group = "billing", timeout = 30)]
async fn bill(order: OrderPlaced) {}

fn main() {}
