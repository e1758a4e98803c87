#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed")]
struct OrderPlaced;

#[handler(channel = "orders", group = "a", dead_letter_for = "orders.bad")]
async fn a(order: OrderPlaced) {}

#[handler(channel = "orders", group = "b", dead_letter_for(undecodeable = "orders.bad", expired = "a b"))]
async fn b(order: OrderPlaced) {}

fn main() {}
