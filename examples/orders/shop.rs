//! The shop's messages and handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use postrider::prelude::*;
use serde::{Deserialize, Serialize};

/// A customer has ordered.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.placed", version = 1, key = "order_id")]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: String,
    pub(crate) number: u64,
    pub(crate) total_cents: u64,
}

impl OrderPlaced {
    /// Order number so-and-so; every sum is a little different.
    pub(crate) fn number(number: u64) -> Self {
        Self { order_id: format!("o-{number}"), number, total_cents: 1000 + number }
    }
}

/// Billing has written an invoice.
#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[message(name = "order.invoiced", version = 1, key = "order_id")]
pub(crate) struct Invoiced {
    pub(crate) order_id: String,
    pub(crate) total_cents: u64,
}

/// What the ledger adds up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<AtomicU64>);

/// The shop's state.
#[derive(Clone, Debug, Default, FromRef)]
pub(crate) struct Shop {
    ledger: Ledger,
}

/// All routes of the shop.
pub(crate) fn router(shop: Shop) -> Router<Shop> {
    Router::with_state(shop).route(bill).route(ship).route(enter)
}

/// Writes an invoice. The card service is slow to wake up for every 20th order, declines every 50th, and has a bug with
/// every 70th.
#[handler(
    channel = "orders",
    group = "billing",
    publishes = "invoices",
    timeout = "3s",
    retry(attempts = 3, backoff = exponential("10ms".."50ms"))
)]
async fn bill(order: OrderPlaced, attempt: Attempt) -> Result<Invoiced, HandlerError> {
    assert!(!order.number.is_multiple_of(70), "no rate for order {}", order.number);
    if order.number.is_multiple_of(50) {
        return Err(HandlerError::msg("card declined")).permanent();
    }
    if order.number.is_multiple_of(20) && attempt.0 < 3 {
        return Err(HandlerError::msg("card service busy"));
    }
    Ok(Invoiced { order_id: order.order_id, total_cents: order.total_cents })
}

/// Packs the parcel.
#[handler(channel = "orders", group = "shipping")]
async fn ship(_order: OrderPlaced) {
    tokio::task::yield_now().await;
}

/// Adds the invoice to the ledger.
#[handler(channel = "invoices", group = "ledger")]
async fn enter(invoice: Invoiced, State(ledger): State<Ledger>) {
    ledger.0.fetch_add(invoice.total_cents, Relaxed);
}
