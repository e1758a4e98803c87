//! Who else is in the group: members tell each other over plain NATS that they are there, so that each knows its share of the
//! partitions. What becomes of a partition is `shared`'s and `partition`'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use postrider_core::Env;
use tokio_util::sync::CancellationToken;

use crate::connection::Connection;
use crate::shared::Shared;

/// The members of a group as one of them sees them.
#[derive(Debug)]
struct Members {
    me: u64,
    others: BTreeMap<u64, Instant>,
}

impl Members {
    fn new(me: u64) -> Self {
        Self { me, others: BTreeMap::new() }
    }

    /// Another member is there; answers whether it wasn't known.
    fn heard(&mut self, other: u64, now: Instant) -> bool {
        other != self.me && self.others.insert(other, now).is_none()
    }

    fn left(&mut self, other: u64) {
        self.others.remove(&other);
    }

    /// Forgets those that weren't heard for so long.
    fn expire(&mut self, now: Instant, patience: Duration) {
        self.others.retain(|_, heard| now.saturating_duration_since(*heard) <= patience);
    }

    /// After a time in which nobody could be heard, nobody's silence means anything.
    fn forgive(&mut self, now: Instant) {
        self.others.values_mut().for_each(|heard| *heard = now);
    }

    /// How many of the partitions are this member's: as many as anybody's, or one more for the first ones in the order of ids.
    fn share(&self, partitions: u32) -> u32 {
        let members = self.others.len() as u32 + 1;
        let rank = self.others.range(..self.me).count() as u32;
        partitions / members + u32::from(rank < partitions % members)
    }
}

/// Tells that this member is there, hears who else is, and keeps its share right.
pub(crate) struct Presence {
    pub(crate) connection: Connection,
    pub(crate) env: Env,
    pub(crate) shared: Arc<Shared>,
    /// The group's, on this channel.
    pub(crate) subject: String,
    pub(crate) partitions: u32,
    /// A member that wasn't heard for so long is gone.
    pub(crate) patience: Duration,
    pub(crate) stop: CancellationToken,
}

impl Presence {
    /// Runs until it is stopped, and says good-bye.
    pub(crate) async fn run(self) {
        let mut members = Members::new(self.env.random());
        let Ok(mut messages) = self.connection.client.subscribe(self.subject.clone()).await else {
            // a closed connection: the pullers say so
            return;
        };
        let (here, gone) = (format!("+{:016x}", members.me), format!("-{:016x}", members.me));
        let mut link = self.connection.link();
        self.tell(&here).await;
        let mut due = self.env.deadline(self.patience / 3);
        let mut share = self.partitions;
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                now = self.connection.changed(link) => {
                    link = now;
                    members.forgive(self.env.now());
                    due = self.env.now();
                }
                message = messages.next() => match message.as_ref().map(|message| read(&message.payload)) {
                    // whoever is new wants to know who is there
                    Some(Some((true, other))) => if members.heard(other, self.env.now()) {
                        self.tell(&here).await;
                    },
                    Some(Some((false, other))) => members.left(other),
                    Some(None) => {}
                    None => return,
                },
                () = self.env.sleep(due.saturating_duration_since(self.env.now())) => {
                    due = self.env.deadline(self.patience / 3);
                    self.tell(&here).await;
                }
            }
            if link.up {
                members.expire(self.env.now(), self.patience);
            }
            let now = members.share(self.partitions);
            if now != share {
                tracing::info!(target: "postrider::claim", group = self.subject, members = members.others.len() + 1,
                    share = now, "the members of the group have changed; this one stands by where its share is none");
                share = now;
                self.shared.share(share, self.env.now());
            }
        }
        self.tell(&gone).await;
    }

    async fn tell(&self, what: &str) {
        if self.connection.is_up() {
            // an error is a closed connection
            let _ = self
                .connection
                .client
                .publish(self.subject.clone(), Bytes::copy_from_slice(what.as_bytes()))
                .await;
        }
    }
}

/// Here or gone, and who.
fn read(payload: &[u8]) -> Option<(bool, u64)> {
    let text = std::str::from_utf8(payload).ok()?;
    let here = text.starts_with('+');
    let id = text.strip_prefix(['+', '-'])?;
    Some((here, u64::from_str_radix(id, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_are_fair_and_add_up(ids in proptest::collection::btree_set(any::<u64>(), 1..20), partitions in 1_u32..65) {
            let now = Instant::now();
            let mut shares = Vec::new();
            for me in &ids {
                let mut members = Members::new(*me);
                for other in &ids {
                    members.heard(*other, now);
                }
                shares.push(members.share(partitions));
            }
            prop_assert_eq!(shares.iter().sum::<u32>(), partitions);
            let (least, most) = (shares.iter().min(), shares.iter().max());
            prop_assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 1));
        }
    }

    #[test]
    fn a_member_that_is_silent_or_says_good_bye_is_none() {
        let (start, patience) = (Instant::now(), Duration::from_secs(3));
        let mut members = Members::new(5);
        assert!(members.heard(1, start) && members.heard(9, start));
        assert!(!members.heard(1, start + patience) && !members.heard(5, start));
        assert_eq!(members.share(8), 3);
        members.expire(start + patience + Duration::from_millis(1), patience);
        assert_eq!(members.share(8), 4);
        members.left(1);
        assert_eq!(members.share(8), 8);
    }

    #[test]
    fn only_what_members_say_is_understood() {
        assert_eq!(read(b"+00000000000000ff"), Some((true, 255)));
        assert_eq!(read(b"-ff"), Some((false, 255)));
        for other in [&b"ff"[..], b"+", b"+xyz", b"\xff", b""] {
            assert_eq!(read(other), None);
        }
    }
}
