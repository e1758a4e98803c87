#![allow(unused)]

use postrider::prelude::*;

#[derive(Message)]
#[message(name = "order.placed")]
struct OrderPlaced {
    order_id: String,
}

fn main() {}
