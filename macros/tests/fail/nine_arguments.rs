#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(channel = "orders", group = "billing")]
async fn bill(a: Attempt, b: Attempt, c: Attempt, d: Attempt, e: Attempt, f: Attempt, g: Attempt, h: Attempt, i: Attempt) {}

fn main() {}
