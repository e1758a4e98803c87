#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

fn worth_it(error: &str) -> bool {
    true
}

#[handler(channel = "orders", group = "a", retry(only_if = "worth_it"))]
async fn a(order: OrderPlaced) {}

#[handler(channel = "orders", group = "b", retry(only_if = worth_it))]
async fn b(order: OrderPlaced) {}

fn main() {}
