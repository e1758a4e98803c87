#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(channel = "orders", group = "a", breaker(failure_rate = 1.5, windw = "10s", probes = 0))]
async fn a(order: OrderPlaced) {}

#[handler(channel = "orders", group = "b", breaker = modern)]
async fn b(order: OrderPlaced) {}

#[handler(channel = "orders", group = "c", breaker = 5)]
async fn c(order: OrderPlaced) {}

#[handler(channel = "orders", group = "d", breaker(slow(limit = "1s")))]
async fn d(order: OrderPlaced) {}

#[handler(channel = "orders", group = "e", breaker(slow = "1s", open_for = "0s", consecutive = 2, consecutive = 3))]
async fn e(order: OrderPlaced) {}

#[handler(channel = "orders", group = "f", breaker)]
async fn f(order: OrderPlaced) {}

fn main() {}
