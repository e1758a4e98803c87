#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(channel = "orders", group = "a", rate = 100)]
async fn a(order: OrderPlaced) {}

#[handler(channel = "orders", group = "b", rate(limit = 100))]
async fn b(order: OrderPlaced) {}

#[handler(channel = "orders", group = "c", rate(limit = 0, per = "1", burts = 2))]
async fn c(order: OrderPlaced) {}

#[handler(channel = "orders", group = "d", rate(limit = 5000000000, per = "1s"))]
async fn d(order: OrderPlaced) {}

fn main() {}
