//! Which messages were handled already: what makes two the same, and the stores that remember it. When a route asks is the
//! runner's.

mod memory;

pub use memory::MemoryStore;

use std::any::Any;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;

use crate::env::BoxFuture;
use crate::envelope::Envelope;
use crate::error::{Error, ErrorKind, Result};
use crate::panics::panic_text;

/// How long what was handled is remembered, unless said otherwise.
const TTL: Duration = Duration::from_hours(7 * 24);

/// What makes two messages the same to one route.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<[u8]>);

impl Identity {
    /// Parts that together name the message, and the scope first. Their lengths stand before them, so that no two lists of parts
    /// are the same identity.
    pub fn new(parts: &[&[u8]]) -> Self {
        let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.len() + 4).sum());
        for part in parts {
            // no part is longer than a message may be
            bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            bytes.extend_from_slice(part);
        }
        Self(bytes.into())
    }

    /// As a store keeps it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.0.escape_ascii())
    }
}

/// By what a route knows a message again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityKey {
    /// The idempotency key that its publisher gave it, else its source and id.
    #[default]
    Auto,
    /// The idempotency key; a message without one goes to the dead letters (`no-identity`).
    Business,
}

/// How a route handles a message once, however often it comes: what it knows it by, and for how long.
///
/// ```
/// use std::time::Duration;
/// use postrider_core::{Idempotency, RouteOptions};
/// let once = Idempotency::auto().ttl(Duration::from_secs(24 * 3600));
/// let options = RouteOptions::new("orders", "billing").idempotency(once);
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idempotency {
    pub(crate) key: IdentityKey,
    pub(crate) ttl: Duration,
}

impl Idempotency {
    /// By the publisher's idempotency key where there is one, else by source and id; remembered for 7 days.
    pub fn auto() -> Self {
        Self { key: IdentityKey::Auto, ttl: TTL }
    }

    /// By the publisher's idempotency key alone; remembered for 7 days.
    pub fn business() -> Self {
        Self { key: IdentityKey::Business, ttl: TTL }
    }

    /// How long what was handled is remembered: longer than any copy of a message can take to come.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// What the message is to a handler of a group; `None`: it has no identity.
    pub(crate) fn identity(&self, envelope: &Envelope, group: &str, handler: &str) -> Option<Identity> {
        let scope = [group.as_bytes(), handler.as_bytes()];
        if let Some(key) = envelope.idempotency_key() {
            return Some(Identity::new(&[scope[0], scope[1], b"key", key.as_bytes()]));
        }
        if self.key == IdentityKey::Business {
            return None;
        }
        let id = envelope.id().to_string();
        let (source, id) = (envelope.source().as_bytes(), id.as_bytes());
        (!id.is_empty() && !envelope.id_is_made_up())
            .then(|| Identity::new(&[scope[0], scope[1], b"id", source, id]))
    }
}

/// Somebody wants to handle a message.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reserve {
    /// Which message.
    pub identity: Identity,
    /// Who asks. Whoever holds the reservation asks for more time with the same token.
    pub token: u64,
    /// How long it is to be kept for him.
    pub lease: Duration,
    /// How often the message was redriven from the dead letters.
    pub redrives: u32,
}

impl Reserve {
    /// Somebody, who goes by `token`, wants to handle a message for `lease`; it was never redriven.
    pub fn new(identity: Identity, token: u64, lease: Duration) -> Self {
        Self { identity, token, lease, redrives: 0 }
    }
}

/// What a store says to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reserved {
    /// It is the asker's, until its lease has run out.
    Granted,
    /// Another has it, for so long at most.
    Taken(Duration),
    /// It is handled.
    Completed,
    /// It is in the dead letters, redriven no more often than this copy was.
    DeadLettered,
}

/// What became of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// Handled, outputs confirmed: remembered for so long.
    Completed(Duration),
    /// Its dead letter is confirmed; remembered for so long. A copy that was redriven more often than so many times is let through.
    DeadLettered(Duration, u32),
    /// Somebody else may have it.
    Released,
}

/// A reservation and what became of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct End {
    /// Which message.
    pub identity: Identity,
    /// Whose reservation. One that another has by now is left alone, unless the message was handled.
    pub token: u64,
    /// What became of it.
    pub how: Ending,
}

impl End {
    /// What became of the reservation that `token` has.
    pub fn new(identity: Identity, token: u64, how: Ending) -> Self {
        Self { identity, token, how }
    }
}

/// Remembers which messages were handled, for all members of a group that share it.
///
/// Both calls take several at once; a store answers for each, in order. Time is the store's own.
pub trait IdempotencyStore: Send + Sync + 'static {
    /// Asks for each whether it may be handled.
    ///
    /// # Errors
    /// When the store can't be asked; then none is granted, and the runner asks again.
    ///
    /// # Cancel safety
    /// What was granted to a call that was dropped lapses with its lease.
    fn reserve<'a>(&'a self, requests: &'a [Reserve]) -> BoxFuture<'a, Result<Vec<Reserved>>>;

    /// Writes down what became of each; durable, where the store is, when it resolves.
    ///
    /// # Errors
    /// When it could not be written down; the runner tries again.
    fn end<'a>(&'a self, endings: &'a [End]) -> BoxFuture<'a, Result<()>>;
}

/// Asks a store, which may be the user's: one that panics fails.
pub(crate) async fn reserve(store: &dyn IdempotencyStore, requests: &[Reserve]) -> Result<Vec<Reserved>> {
    let asked = AssertUnwindSafe(async { store.reserve(requests).await }).catch_unwind();
    asked.await.unwrap_or_else(|panic| Err(store_panicked("reserve", panic))).map_err(Error::contained)
}

/// Tells a store, which may be the user's, what became of a message: one that panics fails.
pub(crate) async fn end(store: &dyn IdempotencyStore, ending: &End) -> Result<()> {
    let told = AssertUnwindSafe(async { store.end(std::slice::from_ref(ending)).await }).catch_unwind();
    told.await.unwrap_or_else(|panic| Err(store_panicked("end", panic))).map_err(Error::contained)
}

fn store_panicked(operation: &'static str, panic: Box<dyn Any + Send>) -> Error {
    let message = format!("the idempotency store panicked: {}", panic_text(panic));
    Error::new(ErrorKind::Broker, operation, message).temporary(true)
}

/// A store that several routers share.
impl<T: IdempotencyStore + ?Sized> IdempotencyStore for Arc<T> {
    fn reserve<'a>(&'a self, requests: &'a [Reserve]) -> BoxFuture<'a, Result<Vec<Reserved>>> {
        (**self).reserve(requests)
    }

    fn end<'a>(&'a self, endings: &'a [End]) -> BoxFuture<'a, Result<()>> {
        (**self).end(endings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Env;

    #[test]
    fn no_two_lists_of_parts_are_one_identity() {
        let identity = |parts: &[&str]| {
            let parts: Vec<_> = parts.iter().map(|part| part.as_bytes()).collect();
            Identity::new(&parts)
        };
        assert_ne!(identity(&["ab", "c"]), identity(&["a", "bc"]));
        assert_ne!(identity(&["a", ""]), identity(&["a"]));
        assert_eq!(identity(&["a", "b"]), identity(&["a", "b"]));
    }

    #[test]
    fn a_business_key_beats_the_id_and_the_scope_is_the_group_s_handler() {
        let env = Env::seeded(1);
        let made = |key: Option<&str>| {
            let builder = Envelope::builder("{}".into());
            key.map_or(Envelope::builder("{}".into()), |key| builder.idempotency_key(key))
                .build(&env)
                .unwrap()
        };
        let of = |policy: Idempotency, envelope: &Envelope, group| policy.identity(envelope, group, "bill");
        let (one, two) = (made(Some("order-1")), made(Some("order-1")));
        assert_ne!(one.id(), two.id());
        assert_eq!(of(Idempotency::auto(), &one, "g"), of(Idempotency::business(), &two, "g"));
        assert_ne!(of(Idempotency::auto(), &one, "g"), of(Idempotency::auto(), &one, "h"));
        let plain = made(None);
        assert!(of(Idempotency::auto(), &plain, "g").is_some());
        assert_eq!(of(Idempotency::business(), &plain, "g"), None);
        assert_ne!(of(Idempotency::auto(), &plain, "g"), of(Idempotency::auto(), &made(None), "g"));
    }
}
