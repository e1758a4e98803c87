#![allow(unused)]

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[message(name = "order.placed", key = "total")]
struct OrderPlaced {
    total: f64,
}

fn main() {}
