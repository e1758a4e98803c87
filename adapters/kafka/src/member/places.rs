//! Where a member's partitions are read from: when they come, when their place is gone from the log, and when another is asked for.
//! What is written down of them is `member`'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider_core::{Error, ErrorKind, Result, Signal, Start};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::MetadataPartition;
use rdkafka::topic_partition_list::Offset;

use super::{BACK_OFF, Member, Work};
use crate::ahead::Records;
use crate::error;
use crate::positions::{self, Place};
use crate::watermark::Watermark;

/// How long one request for positions may take before the client is looked after again.
const REQUEST: Duration = Duration::from_secs(3);
/// How often a member with partitions checks whether its topic exists.
const TOPIC_CHECK_INTERVAL: Duration = Duration::from_secs(15);
/// The same for a member without partitions, and for a subscription without a group: no rebalance assigns new partitions to it.
const FREQUENT_TOPIC_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// The same while the topic does not exist.
const MISSING_TOPIC_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long such a check may block the thread.
const TOPIC_CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// How often the client is asked for its positions at most.
const PASS_INTERVAL: Duration = Duration::from_millis(100);

impl Work {
    /// An ephemeral group: all partitions are this member's, and nothing is written down.
    pub(super) fn take_all(&mut self) {
        match self.partitions(REQUEST) {
            Ok(partitions) => self.assigning = Some((partitions, Instant::now())),
            Err(found) => {
                self.member.shared.end(error::client("subscribe", found).with("topic", &self.member.topic));
                self.member.progress.send_modify(|progress| progress.ended = true);
            }
        }
    }

    /// Checks whether the topic exists. A subscription without a group also takes the partitions that were added.
    pub(super) fn check_topic(&mut self) {
        let now = Instant::now();
        let shared = Arc::clone(&self.member.shared);
        if now < self.next_check && !shared.take_topic_suspected() {
            return;
        }
        let held = shared.numbers();
        let is_frequent = held.is_empty() || !self.member.group;
        self.next_check =
            now + if is_frequent { FREQUENT_TOPIC_CHECK_INTERVAL } else { TOPIC_CHECK_INTERVAL };
        let Ok(all) = self.partitions(TOPIC_CHECK_TIMEOUT) else { return };
        if all.is_empty() {
            // the broker that answers may not know yet of a topic that was just created: only the second answer in a row counts
            shared.set_topic_missing(self.topic_absent);
            self.next_check = now + MISSING_TOPIC_CHECK_INTERVAL;
        } else {
            shared.set_topic_missing(false);
        }
        self.topic_absent = all.is_empty();
        let new: Vec<_> = all.into_iter().filter(|number| !held.contains(number)).collect();
        if !self.member.group && !new.is_empty() && !self.is_changing() {
            self.assigning = Some((new, now));
        }
    }

    /// The numbers of the topic's partitions; none if there is no such topic.
    fn partitions(&self, timeout: Duration) -> std::result::Result<Vec<i32>, KafkaError> {
        let Member { client, topic, .. } = &self.member;
        let metadata = client.fetch_metadata(Some(topic), timeout)?;
        let Some(found) = metadata.topics().iter().find(|found| found.name() == topic) else {
            return Ok(Vec::new());
        };
        match found.error().map(Code::from) {
            None | Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
                Ok(found.partitions().iter().map(MetadataPartition::id).collect())
            }
            Some(code) => Err(KafkaError::MetadataFetch(code)),
        }
    }

    /// Takes the partitions that came, each at its place.
    pub(super) fn assign(&mut self) {
        let now = Instant::now();
        let Some((partitions, _)) = self.assigning.take_if(|(_, at)| *at <= now) else { return };
        let Member { client, shared, topic, group, start, .. } = &self.member;
        let known = shared.initial_partitions();
        let resolved = positions::resolve(client, topic, &partitions, *group, *start, known, REQUEST);
        let places = match resolved {
            Ok(resolved) if resolved.places.len() == partitions.len() => {
                // before anything is written down, so that all of it says so
                shared.set_initial_partitions(resolved.initial_partitions);
                resolved.places
            }
            found => {
                let error = found.err();
                tracing::debug!(target: "postrider::connection", ?error, topic, "positions are asked for again");
                self.assigning = Some((partitions, now + BACK_OFF));
                return;
            }
        };
        let mut claims = Vec::new();
        for place in &places {
            shared.give_back(place.partition);
            // before the client fetches, so that every message takes this way
            let Some(mut queue) = client.split_partition_queue(topic, place.partition) else { continue };
            let arrived = Arc::clone(&shared.arrived);
            queue.set_nonempty_callback(move || arrived.notify_one());
            let mark = Watermark::new(place.position, place.ahead.iter().copied());
            let starts = group.then(|| place.starts.clone());
            let records = Records::new(queue, Arc::clone(&shared.topic));
            claims.push(shared.assign(place.partition, records, mark, starts));
        }
        let list = positions::list(topic, places.iter().map(at));
        let mut taken = client.incremental_assign(&list);
        // partitions that the client holds by what came before: they are given up first, to be taken at their new places
        if taken.is_err() && *group && client.incremental_unassign(&list).is_ok() {
            taken = client.incremental_assign(&list);
        }
        if let Err(error) = taken {
            // the member was thrown out meanwhile; partitions come anew
            tracing::debug!(target: "postrider::connection", %error, topic, "the assignment was refused");
            shared.remove(&partitions);
            return;
        }
        self.next_pass = now + PASS_INTERVAL;
        if !claims.is_empty() {
            shared.event(Signal::Assigned(claims));
            // nothing is handed out before they are known to be held
            self.next_commit = now;
        }
        for gap in places.into_iter().filter_map(|place| place.gap) {
            shared.gap(gap);
        }
        self.round();
    }

    /// Partitions whose place the log doesn't have any more go on where it begins, and the gap is told.
    pub(super) fn mend(&mut self) {
        if self.is_changing() {
            return;
        }
        let troubled = self.member.shared.troubled();
        if troubled.is_empty() {
            return;
        }
        let Member { client, shared, topic, .. } = &self.member;
        let (shared, topic) = (Arc::clone(shared), topic.clone());
        let numbers: Vec<_> = troubled.iter().map(|(number, _)| *number).collect();
        // until they are known, and their places set, nothing is handed out of these
        let Ok(edges) = positions::edges(client, &topic, &numbers, REQUEST) else {
            return;
        };
        for (number, next) in troubled {
            let Some(edges) = edges.get(&number) else { continue };
            // beyond the end it is another log under the same name
            let same = next <= edges.high;
            let position = if same { next.max(edges.low) } else { edges.low };
            // what comes from the new place must not be taken for the old one's
            shared.begin_move(&[number]);
            if let Err(error) = self.put(&[(number, position)]) {
                shared.end_move(&[number]);
                tracing::debug!(target: "postrider::receive", %error, topic, number, "the place is set again");
                continue;
            }
            if same {
                shared.mended(number, position);
            } else {
                shared.moved(number, position);
            }
        }
    }

    /// Offsets without a message are settled: the client's position is behind them, and they never come.
    ///
    /// The client clears a position before it answers a seek or takes a partition anew, and while a partition is moved nothing is taken out of
    /// its queue. So a position is never that of an earlier place.
    pub(super) fn pass_offsets_without_messages(&mut self) {
        let now = Instant::now();
        if self.is_changing() || now < self.next_pass {
            return;
        }
        self.next_pass = now + PASS_INTERVAL;
        let Member { client, shared, .. } = &self.member;
        let drained = shared.drained();
        if drained.is_empty() {
            return;
        }
        let Ok(positions) = client.position() else { return };
        let positions = positions.elements().into_iter().filter_map(|element| match element.offset() {
            Offset::Offset(offset) => Some((element.partition(), offset as u64)),
            // nothing came since it was set
            _ => None,
        });
        shared.pass_to(&drained, positions);
    }

    /// Whether partitions come or go.
    fn is_changing(&self) -> bool {
        self.revoking.is_some() || self.assigning.is_some()
    }

    /// Lets the client read these partitions from other places.
    fn put(&mut self, places: &[(i32, u64)]) -> std::result::Result<(), KafkaError> {
        let Member { client, topic, .. } = &self.member;
        let at = |(number, position): &(i32, u64)| (*number, Offset::Offset(*position as i64));
        self.next_pass = Instant::now() + PASS_INTERVAL;
        let moved = client.seek_partitions(positions::list(topic, places.iter().map(at)), REQUEST)?;
        let moved = moved.elements();
        let stuck = |number: i32| moved.iter().any(|e| e.partition() == number && e.error().is_err());
        let stuck: Vec<_> = places.iter().filter(|(number, _)| stuck(*number)).copied().collect();
        if stuck.is_empty() {
            return Ok(());
        }
        // a partition whose place was outside the log isn't read at all any more, and can't be moved: it is taken anew. But a
        // client that waits for partitions to be taken or given up would take this for the answer.
        self.poll();
        self.handle_events();
        if self.is_changing() {
            return Err(KafkaError::Rebalance(Code::RebalanceInProgress));
        }
        let Member { client, shared, topic, group, .. } = &self.member;
        let list = positions::list(topic, stuck.iter().map(at));
        if *group {
            client.incremental_unassign(&list)?;
            return client.incremental_assign(&list);
        }
        let others = shared.nexts().into_iter().filter(|(other, _)| stuck.iter().all(|(n, _)| n != other));
        let all: Vec<_> = others.chain(stuck.iter().copied()).collect();
        client.assign(&positions::list(topic, all.iter().map(at)))
    }

    pub(super) fn seek(&mut self, start: Start) -> Result<()> {
        let Member { client, shared, topic, .. } = &self.member;
        let numbers = shared.numbers();
        if self.is_changing() || numbers.is_empty() {
            let message = "partitions are changing hands at this moment; try again";
            return Err(Error::new(ErrorKind::Broker, "seek", message).with("topic", topic).temporary(true));
        }
        let (shared, topic) = (Arc::clone(shared), topic.clone());
        let failed = |e| error::client("seek", e).with("topic", &topic);
        let begins = positions::begin(client, &topic, &numbers, start, REQUEST).map_err(failed)?;
        shared.begin_move(&numbers);
        let places: Vec<_> = begins.iter().map(|(number, (_, begin))| (*number, *begin)).collect();
        if let Err(e) = self.put(&places) {
            shared.end_move(&numbers);
            return Err(failed(e));
        }
        for (number, (_, begin)) in begins {
            shared.moved(number, begin);
        }
        Ok(())
    }
}

fn at(place: &Place) -> (i32, Offset) {
    (place.partition, Offset::Offset(place.position as i64))
}
