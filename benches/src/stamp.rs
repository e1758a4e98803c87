//! What a message says of itself, written and read by hand: the attributes that postrider sends with one. The best loop sends them
//! too, for without them a reader knows neither which message it has, nor of what type and version, and looks at them before it
//! decodes; the bare loop sends none and looks at nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
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

/// What a reader has to know of a message before it decodes it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Claimed<'a> {
    pub(crate) id: Option<&'a str>,
    pub(crate) of: Option<&'a str>,
    pub(crate) version: Option<&'a str>,
    pub(crate) content_type: Option<&'a str>,
}

impl Claimed<'_> {
    /// Whether a subject looks at all.
    pub(crate) fn is_read_by(job: &Job) -> bool {
        job.subject != Subject::Bare
    }

    /// That it is what this reader can decode, and by which id a duplicate of it would be known.
    pub(crate) fn check(self) -> Result<Uuid> {
        ensure!(self.of == Some(ORDER), "a message of another type: {:?}", self.of);
        ensure!(self.version == Some(SCHEMA_VERSION), "a message of another version: {:?}", self.version);
        ensure!(
            self.content_type == Some(CONTENT_TYPE),
            "a message of another kind: {:?}",
            self.content_type
        );
        Uuid::try_parse(self.id.context("a message without an id")?).context("a message's id is none")
    }
}
