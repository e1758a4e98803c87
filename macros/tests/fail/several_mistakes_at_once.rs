#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(chanel = "orders", group = "billing.eu", timeout = 30, order = keys)]
fn bill(order: &OrderPlaced) {}

fn main() {}
