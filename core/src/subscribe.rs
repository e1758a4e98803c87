//! Receiving: what is subscribed to, and what a subscription reports. What is done with a message is the runner's.

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use crate::address::{Channel, GroupName};
use crate::delivery::{Delivery, Origin};
use crate::env::BoxFuture;
use crate::error::{Error, ErrorKind, Result};
use crate::settle::{ClaimId, Window};

/// Who reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// One logical consumer: its members share the messages, its place is kept.
    Named(GroupName),
    /// This member's own copy, gone when it leaves.
    Ephemeral,
}

impl Group {
    /// The group's name; `None` for an ephemeral one.
    pub fn name(&self) -> Option<&GroupName> {
        match self {
            Self::Named(name) => Some(name),
            Self::Ephemeral => None,
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().map_or("(ephemeral)", GroupName::as_str))
    }
}

/// Where a group that has no place yet begins. A group that has one goes on from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// With the oldest message that is kept.
    #[default]
    Earliest,
    /// With what is published from now on.
    Latest,
    /// With the first message at or after this time, in milliseconds since the Unix epoch.
    Time(u64),
}

/// What order a group asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Order {
    /// Per key, in the whole group.
    #[default]
    Key,
    /// The broker's own, per partition.
    Partition,
    /// None: the messages are shared freely.
    None,
}

impl Order {
    /// The name in the attribute, in tables and errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Partition => "partition",
            Self::None => "none",
        }
    }
}

/// What a subscription asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscribeOptions {
    /// What to read.
    pub channel: Channel,
    /// Who reads.
    pub group: Group,
    /// Where a new group begins.
    pub start: Start,
    /// The order to be kept.
    pub order: Order,
    /// Into how many partitions the group is split: 1, 2, 4 … 64; the adapter's default if not set.
    pub partitions: Option<u32>,
    /// How much may be unsettled at once.
    pub window: Window,
    /// After how long without a sign of life the broker takes a member's claim away; the adapter's default if not set.
    pub claim_timeout: Option<Duration>,
    /// The longest that one attempt with a message may take, where there is a limit. A broker that takes away what isn't settled in
    /// time refuses what is too long for it.
    pub attempt_timeout: Option<Duration>,
    /// The longest that a message may stay with the member once its first attempt has begun: all attempts, and the waits between them
    /// that aren't spent at the broker. What doesn't fit is refused as well.
    pub longest_hold: Option<Duration>,
    /// The group's retries wait at the broker: what they need there is declared and read.
    pub durable_retry: bool,
    /// The broker's own properties, at the caller's risk.
    pub native: Vec<(String, String)>,
}

impl SubscribeOptions {
    /// The defaults: from the earliest message, in order of keys, with a window of 1,024 messages and 16 MiB.
    pub fn new(channel: Channel, group: Group) -> Self {
        Self {
            channel,
            group,
            start: Start::default(),
            order: Order::default(),
            partitions: None,
            window: Window::default(),
            claim_timeout: None,
            attempt_timeout: None,
            longest_hold: None,
            durable_retry: false,
            native: Vec::new(),
        }
    }
}

/// Messages that retention removed before this group read them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// Which partition.
    pub shard: u32,
    /// The first position that is missing.
    pub from: u64,
    /// The position that reading goes on with.
    pub to: u64,
}

impl Gap {
    /// Positions `from..to` are gone.
    pub fn new(shard: u32, from: u64, to: u64) -> Self {
        Self { shard, from, to }
    }
}

/// What a subscription reports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// Deliveries were appended.
    Deliveries,
    /// These claims are held from now on.
    Assigned(Vec<ClaimId>),
    /// These are to be given up: settle what runs, then [`Subscription::release`] them.
    Revoking(Vec<ClaimId>),
    /// These are gone already: cancel what runs, its results can't be settled.
    Lost(Vec<ClaimId>),
    /// Messages are missing.
    Gap(Gap),
    /// The connection was lost and is back; unsettled deliveries of the old one will come again.
    Reconnected,
    /// No more will come.
    Closed,
}

/// The subscribing half of an adapter.
pub trait Subscriber: Send + Sync + 'static {
    /// What it hands out.
    type Subscription: Subscription;

    /// Attaches a member to a group; the group's topology exists when this resolves.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) before any I/O for what the broker can't do, `Mismatch` when the
    /// topology at the broker differs, `NotFound` when it is missing and may not be created.
    fn subscribe(
        &self,
        options: &SubscribeOptions,
    ) -> impl Future<Output = Result<Self::Subscription>> + Send;
}

/// One member of a group. Dropping it leaves at once and gives back what is unsettled.
pub trait Subscription: Send + 'static {
    /// Appends up to `max` deliveries to `into`, or reports an event. It may always be called: with a full window it waits
    /// for room, and still reports events.
    ///
    /// # Errors
    /// The subscription has ended for a reason that reconnecting doesn't mend.
    ///
    /// # Cancel safety
    /// Safe: what was appended stays in `into`, which the caller owns; nothing else was taken.
    fn receive(
        &mut self,
        max: NonZeroUsize,
        into: &mut Vec<Delivery>,
    ) -> impl Future<Output = Result<Signal>> + Send;

    /// Answers [`Signal::Revoking`], after the claims' deliveries are settled.
    ///
    /// # Errors
    /// When the broker can't be told.
    fn release(&mut self, claims: &[ClaimId]) -> impl Future<Output = Result<()>> + Send;

    /// Leaves in good order: flushes settlements, gives back what is unsettled, hands its claims over.
    ///
    /// # Errors
    /// When the broker can't be told; it will find out by itself.
    fn close(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// A handle that works beside `receive`.
    fn control(&self) -> Arc<dyn Control>;
}

/// Works on a subscription while another task receives from it. What a broker can't do answers `Unsupported`.
pub trait Control: Send + Sync + 'static {
    /// Stops handing out messages; claims are kept.
    fn pause(&self);

    /// Goes on.
    fn resume(&self);

    /// Moves the group's place.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) without [`Capability::Seek`](crate::Capability::Seek).
    fn seek(&self, to: Start) -> BoxFuture<'_, Result<()>>;

    /// How many messages the group has still to settle: unread ones and those under way.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) without [`Capability::Lag`](crate::Capability::Lag), or a lost connection.
    fn lag(&self) -> BoxFuture<'_, Result<u64>>;

    /// How often the group was told that this message runs alone, and not that it ended. What the group is told outlives its members.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) without [`Capability::CrashLoops`](crate::Capability::CrashLoops), or a lost
    /// connection.
    fn strikes(&self, suspect: Suspect) -> BoxFuture<'_, Result<u32>> {
        let _ = suspect;
        Box::pin(std::future::ready(Err(no_strikes("strikes"))))
    }

    /// Tells the group that the message runs alone for the `strikes`th time, or with 0 that it has ended, or its dead letter is there.
    /// Resolves when the broker has it.
    ///
    /// # Errors
    /// As [`strikes`](Self::strikes).
    fn set_strikes(&self, suspect: Suspect, strikes: u32) -> BoxFuture<'_, Result<()>> {
        let _ = (suspect, strikes);
        Box::pin(std::future::ready(Err(no_strikes("set_strikes"))))
    }

    /// The claims held now.
    fn claims(&self) -> Vec<ClaimId>;

    /// Where a message stood, in the broker's own words: topic/partition/offset, stream/sequence and so on.
    fn describe(&self, origin: Origin) -> String;

    /// How it is.
    fn health(&self) -> Health;
}

fn no_strikes(operation: &'static str) -> Error {
    let message = "this subscription keeps nothing of the messages that ended processes";
    Error::new(ErrorKind::Unsupported, operation, message)
}

/// A message that may have ended the processes that handled it, as the broker finds it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Suspect {
    /// Where it stands, for brokers that number messages for good.
    pub origin: Origin,
    /// A hash of who it is and of what it says, for the others.
    pub fingerprint: u64,
}

/// How something is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// In one word.
    pub state: HealthState,
    /// Why, when it isn't up.
    pub reason: Option<String>,
}

impl Health {
    /// All is well.
    pub fn up() -> Self {
        Self::default()
    }

    /// It works, but something needs attention.
    pub fn degraded(reason: impl Into<String>) -> Self {
        Self { state: HealthState::Degraded, reason: Some(reason.into()) }
    }

    /// It doesn't work.
    pub fn down(reason: impl Into<String>) -> Self {
        Self { state: HealthState::Down, reason: Some(reason.into()) }
    }
}

/// How something is, in one word. The greater is the worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum HealthState {
    /// It works.
    #[default]
    Up,
    /// It has no partition at present and would take over from another member.
    Standby,
    /// It works, but something needs attention.
    Degraded,
    /// It doesn't work.
    Down,
}

impl HealthState {
    /// The word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Standby => "standby",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for HealthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
