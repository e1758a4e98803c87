//! What a broker can do, by name. What it can't do is refused at start-up with that name.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};

macro_rules! capabilities {
    ($($(#[doc = $doc:expr])+ $name:ident = $text:literal,)+) => {
        /// One thing that a broker can or can't do. Declared means tested; undeclared means [`ErrorKind::Unsupported`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Capability { $($(#[doc = $doc])+ $name,)+ }

        impl Capability {
            /// Every capability there is, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name that stands in errors, tables and documentation.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

capabilities! {
    /// Order per key in the whole group, across its members.
    KeyOrder = "key-order",
    /// The broker's own order of a partition.
    PartitionOrder = "partition-order",
    /// More than one partition in a group, shared by its members.
    Partitions = "partitions",
    /// A member's own copy of a channel, gone with the member.
    Ephemeral = "ephemeral-groups",
    /// A new group can read what was published before it existed.
    Replay = "replay",
    /// A subscription can start at a point in time.
    StartTime = "start-time",
    /// Give-back with a delay, kept by the broker or, for as long as it lives, by the member that has the message.
    Delay = "delayed-redelivery",
    /// A message can be sent to one group of a channel alone.
    GroupAddress = "group-address",
    /// Such a message can be kept by the broker until its time has come, so that a retry outlives the process that asks for it.
    DurableRetry = "durable-retry",
    /// A message that ends process after process is found out: the group counts and remembers.
    CrashLoops = "crash-loops",
    /// The broker counts deliveries.
    DeliveryCount = "delivery-count",
    /// The broker drops a second message with the same id inside a window.
    Dedupe = "server-side-dedupe",
    /// A running subscription can be moved.
    Seek = "seek",
    /// The broker tells how much a group has still to read.
    Lag = "lag",
    /// Messages that retention removed before they were read are reported.
    Gaps = "gap-detection",
    /// Dead letters can be read, counted and closed beside all groups.
    Letters = "dead-letters",
    /// Messages survive a restart of the broker.
    Durable = "durable",
    /// The broker lists which channels and groups there are.
    Inventory = "inventory",
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What one connected broker can do.
///
/// ```
/// use postrider_core::{Capabilities, Capability};
/// let can = Capabilities::new(768 * 1024).with(Capability::KeyOrder);
/// assert!(can.has(Capability::KeyOrder));
/// let error = can.require(Capability::Seek, "subscribe").unwrap_err();
/// assert!(error.to_string().contains("seek"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    set: u64,
    usable_payload: usize,
    dedupe_window: Option<Duration>,
}

impl Capabilities {
    /// Nothing but publishing and reading, with bodies of at most `usable_payload` bytes.
    pub const fn new(usable_payload: usize) -> Self {
        Self { set: 0, usable_payload, dedupe_window: None }
    }

    /// Declares a capability.
    pub const fn with(mut self, capability: Capability) -> Self {
        self.set |= 1 << capability as u8;
        self
    }

    /// Declares [`Capability::Dedupe`] within a window.
    pub const fn with_dedupe(mut self, window: Duration) -> Self {
        self.dedupe_window = Some(window);
        self.with(Capability::Dedupe)
    }

    /// Whether it is declared.
    pub const fn has(&self, capability: Capability) -> bool {
        self.set & (1 << capability as u8) != 0
    }

    /// The largest body in bytes that may be published: room is left for dead-letter headers.
    pub const fn usable_payload(&self) -> usize {
        self.usable_payload
    }

    /// How long a second message with the same id is dropped by the broker, if it does that.
    pub const fn dedupe_window(&self) -> Option<Duration> {
        self.dedupe_window
    }

    /// All that are declared.
    pub fn iter(&self) -> impl Iterator<Item = Capability> {
        Capability::ALL.iter().copied().filter(|c| self.has(*c))
    }

    /// Refuses `operation` if `capability` isn't declared.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`], naming the capability.
    pub fn require(&self, capability: Capability, operation: &'static str) -> Result<()> {
        if self.has(capability) {
            return Ok(());
        }
        let message =
            format!("this broker has no capability `{capability}`; choose another setting or another broker");
        Err(Error::new(ErrorKind::Unsupported, operation, message).with("capability", capability))
    }
}
