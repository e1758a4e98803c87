//! Which topics are there. What isn't known is asked for before anything is handed over: the client would take the message and find
//! out later.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use postrider_core::{Env, Error, Result};
use rdkafka::error::RDKafkaErrorCode as Code;

use crate::connection::Connection;
use crate::error;
use crate::partitioner::{Barred, FRESH, Place, Topic};

/// The topics that a publisher knows.
#[derive(Debug, Default)]
pub(crate) struct Topics {
    known: RwLock<HashMap<String, Arc<Topic>>>,
    /// The same by channel, of those that were published to: their names needn't be looked at and made for each message.
    channels: RwLock<HashMap<String, Arc<Topic>, foldhash::fast::RandomState>>,
    missing: Mutex<HashMap<String, Instant>>,
    /// Those that are being asked for, each with whose turn it is.
    asking: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Topics {
    fn get(&self, topic: &str) -> Option<Arc<Topic>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(topic).cloned()
    }

    /// The topic isn't relied upon any more, and asked for anew by whoever needs it.
    pub(crate) fn forget(&self, topic: &Arc<Topic>) {
        topic.mark_gone();
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        // gates are needed by whoever asks for it anew, as long as firsts are under way
        if known.get(&*topic.name).is_some_and(|found| Arc::ptr_eq(found, topic))
            && !topic.has_first_under_way()
        {
            known.remove(&*topic.name);
        }
        drop(known);
        self.channels
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, found| !Arc::ptr_eq(found, topic));
    }

    pub(crate) fn of_channel(&self, channel: &str) -> Option<Arc<Topic>> {
        self.channels.read().unwrap_or_else(PoisonError::into_inner).get(channel).cloned()
    }

    pub(crate) fn remember(&self, channel: &str, topic: &Arc<Topic>) {
        let mut channels = self.channels.write().unwrap_or_else(PoisonError::into_inner);
        channels.insert(channel.to_owned(), Arc::clone(topic));
    }

    /// The topic, if it is known and needn't be asked for again.
    pub(crate) fn current(&self, topic: &str, producer: u64, now: Instant) -> Option<Arc<Topic>> {
        self.get(topic).filter(|found| found.is_current(producer, now))
    }

    /// Where a message for a topic's partition goes now. Whoever waits for a gate is to look again after [`Barred::Exchanged`].
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn enter(&self, topic: &Arc<Topic>, partition: u32) -> Result<Place, Barred> {
        let place = topic.enter(partition)?;
        // `renew` finds the gate entered and keeps it, or what it made is found here: there are never two firsts
        if place.first && !self.get(&topic.name).is_some_and(|known| Arc::ptr_eq(&known, topic)) {
            topic.answered(place, false);
            return Err(Barred::Exchanged);
        }
        Ok(place)
    }

    /// What a topic is from now on, of which the broker has said how many partitions it has.
    fn renew(&self, topic: &str, partitions: u32, producer: u64, now: Instant) -> Arc<Topic> {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let before = known.get(topic);
        // somebody else asked meanwhile
        if let Some(found) = before.filter(|found| found.is_current(producer, now)) {
            return Arc::clone(found);
        }
        let found = Arc::new(before.map_or_else(
            || Topic::new(topic, partitions, producer, now),
            |before| before.renewed(partitions, producer, now),
        ));
        known.insert(topic.into(), Arc::clone(&found));
        found
    }

    /// The topic, by what the broker says of it now. One at a time asks for a topic; the others find what it was told.
    pub(crate) async fn find(&self, connection: &Connection, env: &Env, topic: &str) -> Result<Arc<Topic>> {
        let producer = || connection.sends.producer();
        self.find_by(producer, env, topic, || connection.partitions("publish", topic)).await
    }

    /// The same, by `partitions`: how many the broker says that the topic has.
    async fn find_by<F>(
        &self,
        producer: impl Fn() -> u64,
        env: &Env,
        topic: &str,
        partitions: impl Fn() -> F,
    ) -> Result<Arc<Topic>>
    where
        F: Future<Output = Result<Option<u32>>>,
    {
        let asking = || self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = Arc::clone(asking().entry(topic.to_owned()).or_default());
        let held = turn.lock().await;
        let found = match self.current(topic, producer(), env.now()) {
            Some(found) => Ok(found),
            None if self.is_missing(topic, env.now()) => Err(missing(topic)),
            None => self.ask(producer, env, topic, partitions).await,
        };
        drop(held);
        drop(turn);
        asking().retain(|_, turn| Arc::strong_count(turn) > 1);
        found
    }

    /// Whether each message of the topic needs a key: `ask` says whether the topic is compacted, and is called by one at a time. Where it can't
    /// be known, the broker judges.
    pub(crate) async fn requires_keys<F>(&self, topic: &Topic, ask: impl FnOnce() -> F) -> bool
    where
        F: Future<Output = Result<bool>>,
    {
        if let Some(known) = topic.requires_keys() {
            return known;
        }
        let asking = || self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = Arc::clone(asking().entry(topic.name.to_string()).or_default());
        let held = turn.lock().await;
        let required = match topic.requires_keys() {
            Some(known) => known,
            None => ask().await.unwrap_or_else(|error| {
                let topic = &*topic.name;
                tracing::debug!(target: "postrider::connection", %error, topic, "whether the topic is compacted isn't known");
                false
            }),
        };
        topic.set_requires_keys(required);
        drop(held);
        drop(turn);
        asking().retain(|_, turn| Arc::strong_count(turn) > 1);
        required
    }

    /// Whether the topic wasn't there a moment ago.
    fn is_missing(&self, topic: &str, now: Instant) -> bool {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.get(topic).is_some_and(|at| now < *at + FRESH)
    }

    async fn ask<F>(
        &self,
        producer: impl Fn() -> u64,
        env: &Env,
        topic: &str,
        partitions: impl Fn() -> F,
    ) -> Result<Arc<Topic>>
    where
        F: Future<Output = Result<Option<u32>>>,
    {
        // a topic that was made this moment may not have reached the broker that is asked
        for wait in [20, 80, 0] {
            if let Some(count) = partitions().await? {
                return Ok(self.renew(topic, count, producer(), env.now()));
            }
            env.sleep(Duration::from_millis(wait)).await;
        }
        if let Some(found) = self.get(topic) {
            self.forget(&found);
        }
        let mut all = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        let now = env.now();
        all.retain(|_, at| now < *at + FRESH);
        all.insert(topic.into(), now);
        Err(missing(topic))
    }
}

fn missing(topic: &str) -> Error {
    error::code("publish", Code::UnknownTopic).with("topic", topic)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use proptest::prelude::*;

    use super::*;

    const LATER: Duration = Duration::from_mins(2);
    const PARTITIONS: u32 = 3;

    #[derive(Clone, Debug)]
    enum Step {
        /// Of the topics that there have been, through whichever a sender has looked up.
        Enter(prop::sample::Index, u32),
        Answer(prop::sample::Index, bool),
        AskAnew,
        Forget(prop::sample::Index),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let index = any::<prop::sample::Index>;
        let step = prop_oneof![
            6 => (index(), 0..PARTITIONS).prop_map(|(topic, partition)| Step::Enter(topic, partition)),
            4 => (index(), any::<bool>()).prop_map(|(first, confirmed)| Step::Answer(first, confirmed)),
            1 => Just(Step::AskAnew),
            1 => index().prop_map(Step::Forget),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn one_first_is_under_way_and_only_its_answer_opens_the_gate_of_the_topic_as_it_is(steps in steps()) {
            let (topics, mut now) = (Topics::default(), Instant::now());
            let mut all = vec![topics.renew("t", PARTITIONS, 1, now)];
            let mut firsts: Vec<(Arc<Topic>, Place)> = Vec::new();
            // of the topic that is known
            let mut open = [false; PARTITIONS as usize];
            for step in steps {
                let known = topics.get("t");
                let is_known = |topic: &Arc<Topic>| known.as_ref().is_some_and(|known| Arc::ptr_eq(known, topic));
                match step {
                    Step::Enter(topic, partition) => {
                        let topic = topic.get(&all);
                        let is_out = firsts.iter().any(|(_, place)| place.partition == partition);
                        match topics.enter(topic, partition) {
                            Ok(place) if place.first => {
                                prop_assert!(!is_out && is_known(topic) && !open[partition as usize]);
                                firsts.push((Arc::clone(topic), place));
                            }
                            Ok(_) => prop_assert!(!is_known(topic) || open[partition as usize]),
                            Err(Barred::Exchanged) => prop_assert!(!is_known(topic)),
                            Err(barred) => prop_assert!(barred == Barred::FirstUnderWay && is_out),
                        }
                    }
                    Step::Answer(first, confirmed) if !firsts.is_empty() => {
                        let (topic, place) = firsts.remove(first.index(firsts.len()));
                        topic.answered(place, confirmed);
                        open[place.partition as usize] |= confirmed && is_known(&topic);
                    }
                    Step::Answer(..) => {}
                    Step::AskAnew => {
                        now += LATER;
                        all.push(topics.renew("t", PARTITIONS, 1, now));
                        open = [false; PARTITIONS as usize];
                    }
                    Step::Forget(topic) => {
                        let topic = topic.get(&all);
                        topics.forget(topic);
                        prop_assert!(!topic.is_current(1, now));
                    }
                }
                for partition in 0..PARTITIONS {
                    let is_out = firsts.iter().any(|(_, place)| place.partition == partition);
                    if let Some(known) = topics.get("t") {
                        prop_assert_eq!(known.is_under_way(partition), is_out);
                    }
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_asks_for_all_whether_the_topic_is_there_or_not() {
        let env = Env::system();
        // a topic that isn't there is asked for three times, since it may have been made this moment
        for (count, expected) in [(Some(PARTITIONS), 1), (None, 3)] {
            let (topics, asked) = (Arc::new(Topics::default()), Arc::new(AtomicU64::new(0)));
            let (counted, waits) = (Arc::clone(&asked), env.clone());
            let ask = move || {
                counted.fetch_add(1, Relaxed);
                let answered = waits.sleep(Duration::from_millis(10));
                async move {
                    answered.await;
                    Ok(count)
                }
            };
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..200 {
                let (topics, env, ask) = (Arc::clone(&topics), env.clone(), ask.clone());
                all.spawn(async move { topics.find_by(|| 1, &env, "t", ask).await.is_ok() });
            }
            assert_eq!(all.join_all().await, [count.is_some(); 200]);
            assert_eq!(asked.load(Relaxed), expected, "{count:?}");
        }
    }

    #[tokio::test]
    async fn one_asks_whether_keys_are_needed_and_a_broker_that_does_not_tell_is_the_judge() {
        let (topics, asked) = (Topics::default(), AtomicU64::new(0));
        let ask = |answer: Result<bool>| {
            asked.fetch_add(1, Relaxed);
            async {
                tokio::task::yield_now().await;
                answer
            }
        };
        let topic = Topic::new("t", 1, 1, Instant::now());
        let both = tokio::join!(
            topics.requires_keys(&topic, || ask(Ok(true))),
            topics.requires_keys(&topic, || ask(Ok(false)))
        );
        assert_eq!((both, asked.load(Relaxed)), ((true, true), 1));
        let other = Topic::new("other", 1, 1, Instant::now());
        let refused = error::code("publish", Code::TopicAuthorizationFailed);
        assert!(!topics.requires_keys(&other, || ask(Err(refused))).await);
        assert_eq!(other.requires_keys(), Some(false), "not asked for with each message");
    }

    #[test]
    fn a_topic_that_is_asked_for_anew_waits_for_the_first_that_is_under_way() {
        let (topics, now) = (Topics::default(), Instant::now());
        let topic = topics.renew("t", 2, 1, now);
        let first = topics.enter(&topic, 0).unwrap();
        assert!(Arc::ptr_eq(&topics.renew("t", 2, 1, now), &topic), "somebody asked a moment ago");
        let anew = topics.renew("t", 2, 1, now + LATER);
        assert_eq!(topics.enter(&anew, 0), Err(Barred::FirstUnderWay));
        topic.answered(first, true);
        assert!(topics.enter(&anew, 0).is_ok_and(|place| place.first));
    }

    #[test]
    fn a_gate_that_was_exchanged_since_it_was_looked_up_isnt_opened() {
        let (topics, now) = (Topics::default(), Instant::now());
        let looked_up = topics.renew("t", 1, 1, now);
        let anew = topics.renew("t", 1, 1, now + LATER);
        assert!(!looked_up.is_current(1, now));
        assert_eq!(topics.enter(&looked_up, 0), Err(Barred::Exchanged));
        assert!(!looked_up.is_under_way(0));
        assert!(topics.enter(&anew, 0).is_ok_and(|place| place.first));
    }

    #[test]
    fn what_is_forgotten_is_asked_for_anew_and_its_gates_stay_until_they_are_answered() {
        let (topics, now) = (Topics::default(), Instant::now());
        let topic = topics.renew("t", 2, 1, now);
        let first = topics.enter(&topic, 0).unwrap();
        topics.remember("c", &topic);
        topics.forget(&topic);
        assert!(topics.of_channel("c").is_none() && topics.current("t", 1, now).is_none());
        let anew = topics.renew("t", 2, 1, now);
        assert_eq!(topics.enter(&anew, 0), Err(Barred::FirstUnderWay));
        assert!(topics.enter(&anew, 1).is_ok_and(|place| place.first));
        topic.answered(first, false);
        assert!(topics.enter(&anew, 0).is_ok_and(|place| place.first));
    }

    #[test]
    fn what_is_forgotten_without_a_first_under_way_isnt_kept() {
        let (topics, now) = (Topics::default(), Instant::now());
        let topic = topics.renew("t", 1, 1, now);
        topics.forget(&topic);
        assert!(topics.get("t").is_none());
        topics.remember("c", &topic);
        assert!(topics.of_channel("c").is_some_and(|found| !found.is_current(1, now)));
        assert_eq!(topics.enter(&topic, 0), Err(Barred::Exchanged));
    }
}
