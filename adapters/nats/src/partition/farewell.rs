//! How a partition's puller ends: it keeps what is on its way to it, which the client would drop, and then says that nothing more is wanted.

use std::time::Duration;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;

use super::{Puller, Talk};

/// How long a member that leaves waits for each of the server's answers.
const ANSWER: Duration = Duration::from_secs(1);
/// After so long it takes a request for worked off.
const WORKED_OFF: Duration = Duration::from_millis(20);
/// How often it looks for messages that a pin of which it doesn't know may bring.
const LOOKS: usize = 3;

impl Puller {
    /// Says that nothing more is wanted, and keeps what was on its way, to be given back.
    pub(super) async fn farewell(&self, talk: &mut Talk, mut messages: Subscriber) {
        // the client drops what comes after that, and the server would wait for it as long as for a member that died: so first comes
        // all that is on its way
        let mut looks = 0;
        while talk.link.up {
            if self.is_more_on_its_way(talk, &mut messages).await {
                continue;
            }
            if looks == LOOKS || !self.may_be_ours(talk).await {
                break;
            }
            looks += 1;
        }
        // an error is a closed connection: then nothing more comes anyway
        let _ = messages.unsubscribe().await;
        while let Some(message) = messages.next().await {
            self.keep(talk, message);
        }
    }

    /// Keeps all that the server sent before it answers a word of our own. Answers whether that was anything: then more may have been
    /// sent meanwhile, as long as something of what was asked for is left.
    async fn is_more_on_its_way(&self, talk: &mut Talk, messages: &mut Subscriber) -> bool {
        let last = format!("{}.e", talk.inbox);
        if self.connection.client.publish(last.clone(), Bytes::new()).await.is_err() {
            return false;
        }
        let link = talk.link;
        let all = async {
            let mut came = 0;
            loop {
                match messages.next().await {
                    Some(message) if *message.subject == *last => return came > 0,
                    Some(message) => self.keep(talk, message),
                    None => return false,
                }
                came += 1;
            }
        };
        tokio::select! {
            biased;
            // what was on its way went with the connection
            _ = self.connection.changed(link) => false,
            more = all => more,
            () = self.env.sleep(ANSWER) => false,
        }
    }

    /// Whether the partition was given to somebody of whom this member doesn't know, which may be itself: the server works requests off
    /// beside all else, and one that was made just now may still lie there.
    async fn may_be_ours(&self, talk: &Talk) -> bool {
        if !self.plan.pinned || talk.requested == 0 {
            return false;
        }
        let age = self.env.now().saturating_duration_since(talk.asked);
        if let Some(young) = WORKED_OFF.checked_sub(age) {
            self.env.sleep(young).await;
        }
        tokio::select! {
            biased;
            found = self.plan.unsettled() => {
                found.ok().flatten().is_some_and(|found| found.pin.is_some() && found.pin != talk.pin)
            }
            () = self.env.sleep(ANSWER) => false,
        }
    }

    fn keep(&self, talk: &mut Talk, message: Message) {
        let mut lot = Vec::new();
        // what is wrong with it is the next holder's to find
        let _ = self.take_one(talk, message, &mut lot);
        self.shared.push(self.shard, lot);
    }
}
