//! All that is known of a message besides its body.

use std::sync::Arc;

use super::{FromIncoming, Incoming, Rejection, RouteContext, RouteNames};
use crate::envelope::Envelope;
use crate::headers::Headers;
use crate::id::MessageId;
use crate::settle::ClaimId;

/// All that is known of a message besides its body: attributes, headers, and which try this is.
#[derive(Clone, Debug)]
pub struct Meta {
    envelope: Envelope,
    attempt: u32,
    deliveries: Option<u32>,
    claim: ClaimId,
    route: Arc<RouteNames>,
}

impl Meta {
    /// The message's id.
    pub fn id(&self) -> &MessageId {
        self.envelope.id()
    }

    /// Who published it.
    pub fn source(&self) -> &str {
        self.envelope.source()
    }

    /// The name of its type; empty when a foreign message names none.
    pub fn type_name(&self) -> &str {
        self.envelope.type_name()
    }

    /// The version of its type; 0 when a foreign message names none.
    pub fn version(&self) -> u32 {
        self.envelope.version()
    }

    /// When it happened, in milliseconds since the Unix epoch.
    pub fn time_ms(&self) -> u64 {
        self.envelope.time_ms()
    }

    /// Its key.
    pub fn key(&self) -> Option<&[u8]> {
        self.envelope.key()
    }

    /// The user's headers.
    pub fn headers(&self) -> &Headers {
        self.envelope.headers()
    }

    /// The envelope, for everything else.
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The channel that the route reads.
    pub fn channel(&self) -> &str {
        &self.route.channel
    }

    /// The group that the route reads for.
    pub fn group(&self) -> &str {
        &self.route.group
    }

    /// Which attempt this is, from 1: this route's own tries.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// How often the broker has delivered it, where the broker counts; includes deliveries that were never started.
    pub fn deliveries(&self) -> Option<u32> {
        self.deliveries
    }

    /// The hold under which it was delivered. Where the broker numbers holds across members, it is a fencing token: an effect
    /// that refuses a lower epoch of the same shard than it has seen can't be overtaken by a member that was cut off. On the
    /// embedded broker that is so; on NATS each process counts its own holds, and the epoch only tells those apart.
    pub fn claim_epoch(&self) -> ClaimId {
        self.claim
    }
}

impl<S: Sync> FromIncoming<S> for Meta {
    async fn extract(incoming: &mut Incoming, cx: &RouteContext<S>) -> Result<Self, Rejection> {
        Ok(Self {
            envelope: incoming.first.clone(),
            attempt: incoming.attempt,
            deliveries: incoming.deliveries,
            claim: incoming.claim,
            route: Arc::clone(cx.route()),
        })
    }
}
