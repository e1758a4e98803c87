//! Which topics are there. What isn't known is asked for before anything is handed over: the client would take the message and find
//! out later.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use postrider_core::{Env, Result};
use rdkafka::error::RDKafkaErrorCode as Code;

use crate::connection::Connection;
use crate::error;
use crate::partitioner::{Place, Topic};

/// How long a topic that wasn't there isn't asked for again.
const MISSING: Duration = Duration::from_millis(500);

/// The topics that a publisher knows.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    known: RwLock<HashMap<String, Arc<Topic>>>,
    /// The same by channel, of those that were published to: their names needn't be looked at and made for each message.
    channels: RwLock<HashMap<String, Arc<Topic>, foldhash::fast::RandomState>>,
    missing: Mutex<HashMap<String, Instant>>,
}

impl Topics {
    fn get(&self, topic: &str) -> Option<Arc<Topic>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    pub(crate) fn forget(&self, topic: &str) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(topic);
        self.channels
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, found| *found.name != *topic);
    }

    pub(crate) fn of_channel(&self, channel: &str) -> Option<Arc<Topic>> {
        self.channels.read().unwrap_or_else(PoisonError::into_inner).get(channel).cloned()
    }

    pub(crate) fn remember(&self, channel: &str, topic: &Arc<Topic>) {
        let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
        channels.insert(channel.to_owned(), Arc::clone(topic));
    }

    /// The topic, if it is known and needn't be asked for again.
    pub(crate) fn usable(&self, topic: &str, producer: u64, now: Instant) -> Option<Arc<Topic>> {
        self.get(topic).filter(|found| found.is_usable(producer, now))
    }

    /// Whether a message may go to a topic's partition now; `None`: another is the first there and under way, or the topic was asked
    /// for anew since it was looked up.
    pub(crate) fn enter(&self, topic: &Arc<Topic>, partition: u32) -> Option<Place> {
        let place = topic.enter(partition)?;
        // `renew` sees that the gate was entered, or its topic is seen here: there are never two gates with a first one under way
        if place.first && !self.get(&topic.name).is_some_and(|known| Arc::ptr_eq(&known, topic)) {
            topic.answered(place, false);
            return None;
        }
        Some(place)
    }

    /// What a topic is from now on, of which the broker has said how many partitions it has.
    fn renew(&self, topic: &str, partitions: u32, producer: u64, now: Instant) -> Arc<Topic> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // somebody else asked meanwhile, or entered a gate
        if let Some(found) = known.get(topic).filter(|found| found.is_usable(producer, now)) {
            return Arc::clone(found);
        }
        let found = Arc::new(Topic::new(topic, partitions, producer, now));
        known.insert(topic.into(), Arc::clone(&found));
        found
    }

    /// Asks for the topic.
    pub(crate) async fn find(&self, connection: &Connection, env: &Env, topic: &str) -> Result<Arc<Topic>> {
        let missing = || error::code("publish", Code::UnknownTopic).with("topic", topic);
        let lately = self.missing.lock().unwrap_or_else(PoisonError::into_inner).get(topic).copied();
        if lately.is_some_and(|at| env.now() < at + MISSING) {
            return Err(missing());
        }
        // a topic that was made this moment may not have reached the broker that is asked
        for wait in [20, 80, 0] {
            if let Some(count) = connection.partitions("publish", topic).await? {
                return Ok(self.renew(topic, count, connection.sends.producer(), env.now()));
            }
            env.sleep(Duration::from_millis(wait)).await;
        }
        self.forget(topic);
        let mut all = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = env.now();
        all.retain(|_, at| now < *at + MISSING);
        all.insert(topic.into(), now);
        Err(missing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_mins(2);

    #[test]
    fn a_topic_isnt_exchanged_while_a_gate_is_being_opened() {
        let (topics, now) = (Topics::default(), Instant::now());
        let topic = topics.renew("t", 2, 1, now);
        let first = topics.enter(&topic, 0).unwrap();
        assert!(Arc::ptr_eq(&topics.renew("t", 2, 1, now + LATER), &topic), "its first is under way");
        topic.answered(first, true);
        assert!(!Arc::ptr_eq(&topics.renew("t", 2, 1, now + LATER), &topic));
    }

    #[test]
    fn a_gate_that_was_exchanged_since_it_was_looked_up_isnt_opened() {
        let (topics, now) = (Topics::default(), Instant::now());
        let looked_up = topics.renew("t", 1, 1, now);
        let anew = topics.renew("t", 1, 1, now + LATER);
        assert!(topics.enter(&looked_up, 0).is_none() && !looked_up.is_under_way(0));
        assert!(topics.enter(&anew, 0).is_some_and(|place| place.first));
        topics.forget("t");
        assert!(topics.enter(&anew, 0).is_none(), "the first is under way");
    }
}
