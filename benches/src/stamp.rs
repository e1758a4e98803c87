//! What a message says of itself, written by hand: the attributes that postrider sends with one. The best loop sends them too, for
//! without them a reader knows neither which message it has, nor of what type and version; the bare loop sends none.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use jiff::Timestamp;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use crate::case::Subject;
use crate::job::Job;

pub(crate) const SPECVERSION: &str = "1.0";
pub(crate) const SOURCE: &str = "/postrider";
pub(crate) const SCHEMA_VERSION: &str = "1";
pub(crate) const CONTENT_TYPE: &str = "application/json";
pub(crate) const ORDER: &str = "order.placed";
pub(crate) const INVOICE: &str = "invoice";

/// Draws ids and tells the time.
pub(crate) struct Stamp {
    last: u128,
    ms: u64,
    time: String,
    id: [u8; Hyphenated::LENGTH],
}

/// What is said of one message.
#[derive(Clone, Copy)]
pub(crate) struct Said<'a> {
    pub(crate) id: &'a str,
    pub(crate) time: &'a str,
    pub(crate) ms: u64,
}

impl Stamp {
    /// Of a subject that says something of its messages.
    pub(crate) fn of(job: &Job) -> Option<Self> {
        (!matches!(job.subject, Subject::Bare | Subject::Narrow)).then(|| Self {
            last: Uuid::now_v7().as_u128(),
            ms: 0,
            time: String::new(),
            id: [0; Hyphenated::LENGTH],
        })
    }

    /// The next message's.
    pub(crate) fn next(&mut self) -> Result<Said<'_>> {
        let ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
        if ms != self.ms {
            (self.ms, self.time) = (ms, Timestamp::from_millisecond(ms as i64)?.to_string());
        }
        // one after the other, as version 7 allows
        self.last += 1;
        let id = &*Uuid::from_u128(self.last).hyphenated().encode_lower(&mut self.id);
        Ok(Said { id, time: &self.time, ms })
    }
}
