#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed", key = "oder_id")]
struct OrderPlaced {
    order_id: String,
}

fn main() {}
