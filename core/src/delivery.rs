//! A message as it comes in: its envelope, where it came from, and the claim on it.

use crate::envelope::Envelope;
use crate::settle::{Claim, ClaimId};

/// Where a message stood at the broker. [`Control::describe`](crate::Control::describe) puts it into the broker's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Which partition, queue or consumer, in the numbering of its subscription.
    pub shard: u32,
    /// Offset, stream sequence or delivery number.
    pub position: u64,
}

/// One message, received and not yet settled.
#[must_use = "dropping a delivery gives the message back to the broker"]
#[derive(Debug)]
pub struct Delivery {
    /// The message.
    pub envelope: Envelope,
    /// Where it stood.
    pub origin: Origin,
    /// How often the broker has delivered it, this time included, where the broker counts. It includes deliveries that
    /// were never started, so it says nothing about failed attempts.
    pub deliveries: Option<u32>,
    /// The right to settle it.
    pub claim: Claim,
}

impl Delivery {
    /// The hold under which it was delivered.
    pub fn claim_id(&self) -> ClaimId {
        self.claim.token().claim
    }
}
