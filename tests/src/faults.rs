//! The fault run: publishers and consumers as processes of their own, and kills of them and of the broker under load. What
//! they did is written down and compared afterwards.

pub mod consumer;
pub mod driver;
mod order;
mod outage;
mod plan;
pub mod publisher;
mod script;
mod storm;
pub mod totals;

use std::time::Duration;

/// What is done to the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Kills of the broker and of consumers.
    Base,
    /// The same, with messages that always fail and end in the dead letters.
    Poison,
    /// The dead-letter channel takes nothing for 20 s, while messages fail for good and consumers are killed.
    DlqDown,
    /// One consumer that handles each message once by a durable store, killed together with it.
    StoreKill,
    /// Messages that end the process which handles them.
    Abort,
    /// Members come and go each second, half of them by a kill.
    Storm,
}

impl Case {
    /// Those that every broker is put to.
    pub const ALL: [Self; 5] = [Self::Base, Self::Poison, Self::DlqDown, Self::StoreKill, Self::Abort];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::Poison => "poison",
            Self::DlqDown => "dlq-down",
            Self::StoreKill => "store-kill",
            Self::Abort => "abort",
            Self::Storm => "storm",
        }
    }
}

/// How much is sent and how often something is killed.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// How many messages.
    pub messages: u32,
    /// How often the broker is killed.
    pub broker_kills: u32,
    /// How often a consumer is killed: in turn anywhere, before its effect and after it.
    pub consumer_kills: u32,
    /// How often the broker is stopped and goes on.
    pub pauses: u32,
    /// How often every connection is cut.
    pub cuts: u32,
    /// How often a consumer drains and another comes.
    pub replaced: u32,
    /// How often the dead-letter channel is closed for a while.
    pub outages: u32,
}

impl Size {
    /// The run that every change passes.
    pub const SHORT: Self = Self {
        messages: 20_000,
        broker_kills: 3,
        consumer_kills: 3,
        pauses: 1,
        cuts: 1,
        replaced: 1,
        outages: 0,
    };

    /// The full run: a broker that is quickly back is killed more often.
    pub fn long(broker: &str) -> Self {
        let broker_kills = if broker == "nats" { 20 } else { 10 };
        Self {
            messages: 200_000,
            broker_kills,
            consumer_kills: 20,
            pauses: 5,
            cuts: 5,
            replaced: 5,
            outages: 0,
        }
    }

    /// What of it a case does.
    pub fn of(self, case: Case) -> Self {
        let calm = Self { broker_kills: 0, pauses: 0, cuts: 0, replaced: 0, ..self };
        match case {
            Case::Base | Case::Poison => self,
            Case::StoreKill => Self { replaced: 0, ..self },
            Case::DlqDown => Self { outages: 1, ..calm },
            Case::Abort | Case::Storm => Self { consumer_kills: 0, ..calm },
        }
    }

    /// All of them together.
    pub const fn harms(&self) -> u32 {
        self.broker_kills + self.consumer_kills + self.pauses + self.cuts + self.replaced + self.outages
    }
}

/// How many keys the messages have.
pub const KEYS: u32 = 1_000;
/// The claim time-out of the run.
pub const CLAIM_TIMEOUT: Duration = Duration::from_secs(3);
/// For how long the broker may not have heard that a message was handled. On Kafka the place is written every 100 ms, nothing is
/// handed out once that is 250 ms late, and what was handed out by then, a window of 1,024, is handled by 8 at a time in 6 ms each,
/// which a busy machine makes twice as much. The others are told at once.
pub fn unheard(broker: &str) -> Duration {
    if broker == "kafka" { Duration::from_millis(100 + 250 + 2 * 1_024 / 8 * 6) } else { Duration::ZERO }
}
/// The channel of the orders.
pub const CHANNEL: &str = "orders";
