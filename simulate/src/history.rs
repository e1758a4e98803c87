//! What happened in a run, in its order: the checker's input, and line by line the run's trace.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use postrider_core::{Env, Envelope};

/// What became of a publish, as its sender was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    Confirmed,
    Failed,
    Unknown,
}

/// Which publish it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Message,
    Retry,
    Letter,
    Output,
}

/// How a call of the handler ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Returned,
    Panicked,
    /// Its future was dropped: it took too long, or it was cancelled.
    Dropped,
}

/// One thing that happened. Messages go by their numbers, routes by their groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Sent {
        what: What,
        to: String,
        number: u64,
        sent: Sent,
    },
    Delivered {
        member: u32,
        group: String,
        number: u64,
        position: u64,
        deliveries: u32,
        key: Option<String>,
    },
    Acked {
        member: u32,
        group: String,
        number: u64,
        position: u64,
    },
    /// It was settled after its claim had ended.
    Stale {
        member: u32,
        group: String,
        number: u64,
    },
    Lost {
        member: u32,
        group: String,
    },
    Began {
        member: u32,
        group: String,
        call: u64,
        numbers: Vec<u64>,
        attempt: u32,
    },
    Ended {
        group: String,
        call: u64,
        how: How,
    },
    Effect {
        group: String,
        call: u64,
        number: u64,
    },
    Failed {
        group: String,
        call: u64,
        number: u64,
        permanent: bool,
    },
    StoreTold {
        group: String,
        number: u64,
        how: String,
    },
    StoreFailed,
    Letter {
        group: String,
        number: u64,
        reason: String,
    },
    Output {
        number: u64,
    },
    Started {
        member: u32,
    },
    Stopping {
        member: u32,
        deadline_ms: u64,
    },
    Stopped {
        member: u32,
        drained: bool,
        took_ms: u64,
    },
    Dropped {
        member: u32,
    },
    Idle,
    /// A bound that was broken while it ran.
    Broken(String),
}

/// The history in the making; clones write to the same.
#[derive(Clone, Debug)]
pub(crate) struct World(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    env: Env,
    began: Instant,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    events: Vec<(u64, Event)>,
    trace: String,
    calls: u64,
    /// How often each group was called for each message.
    tries: HashMap<(String, u64), u64>,
    member: u32,
}

impl World {
    pub(crate) fn new(env: &Env) -> Self {
        Self(Arc::new(Shared { env: env.clone(), began: env.now(), state: Mutex::default() }))
    }

    pub(crate) fn env(&self) -> &Env {
        &self.0.env
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Simulated microseconds since the run began.
    pub(crate) fn now_us(&self) -> u64 {
        self.0.env.now().saturating_duration_since(self.0.began).as_micros() as u64
    }

    pub(crate) fn tell(&self, event: Event) {
        let at = self.now_us();
        let mut state = self.state();
        // writing to a string can't fail
        let _ = writeln!(state.trace, "{:>10}.{:03} {event:?}", at / 1000, at % 1000);
        state.events.push((at, event));
    }

    /// A number for the next call of a handler.
    pub(crate) fn next_call(&self) -> u64 {
        let mut state = self.state();
        state.calls += 1;
        state.calls
    }

    /// How often the group was called for the message, this time included.
    pub(crate) fn next_try(&self, group: &str, number: u64) -> u64 {
        let mut state = self.state();
        let tries = state.tries.entry((group.to_owned(), number)).or_default();
        *tries += 1;
        *tries
    }

    /// The next member is being started.
    pub(crate) fn next_member(&self) -> u32 {
        let mut state = self.state();
        state.member += 1;
        state.member
    }

    /// The member that was started last.
    pub(crate) fn member(&self) -> u32 {
        self.state().member
    }

    /// All that happened, and its trace.
    pub(crate) fn take(&self) -> (Vec<(u64, Event)>, String) {
        let mut state = self.state();
        (std::mem::take(&mut state.events), std::mem::take(&mut state.trace))
    }
}

/// The number of a message, wherever it travels: in its header, or in the body of what was made of it.
pub(crate) fn number_of(envelope: &Envelope) -> u64 {
    if let Some(number) = envelope.headers().get("n").and_then(postrider_core::HeaderValue::as_int) {
        return number as u64;
    }
    let body = String::from_utf8_lossy(envelope.payload());
    let digits = body.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX)
}
