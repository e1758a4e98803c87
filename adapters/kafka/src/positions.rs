//! Where reading begins: from what the group wrote down, from the log's edges, from a time. Every request blocks its thread.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use postrider_core::{Gap, Start};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::mark::{self, Mark, Starts};
use crate::rebalance::Client;

/// Where a partition begins.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) partition: i32,
    pub(crate) position: u64,
    /// Settled above it.
    pub(crate) ahead: Vec<u64>,
    /// What is known of those who held it.
    pub(crate) starts: Starts,
    /// Retention was faster than the group.
    pub(crate) gap: Option<Gap>,
}

impl Place {
    /// Where a partition with these edges begins: where the group stopped, else at `begin`.
    fn of(partition: i32, edges: Edges, begin: u64, written: Option<Written>) -> Self {
        let Edges { low, high } = edges;
        let new = |position| {
            let (ahead, starts) = (Vec::new(), Starts::default());
            Self { partition, position, ahead, starts, gap: None }
        };
        match written {
            None => new(begin),
            // another log under the same name: read it from its beginning rather than miss anything
            Some(Written { position, .. }) if position > high => new(low),
            Some(Written { position, mark: Mark { mut ahead, mut starts, .. } }) => {
                // what came later was never out
                starts.reach = starts.reach.min(high);
                // what is settled behind a gap doesn't come again
                ahead.retain(|offset| *offset >= low);
                let gap = (position < low).then(|| Gap::new(partition as u32, position, low));
                Self { partition, position: position.max(low), ahead, starts, gap }
            }
        }
    }
}

/// The first offset of a partition's log, and the one behind the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edges {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

/// What a group wrote down for a partition.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) position: u64,
    pub(crate) mark: Mark,
}

impl Written {
    /// How many messages are unsettled, of a log with these edges.
    pub(crate) fn lag(&self, Edges { low, high }: Edges) -> u64 {
        let from = self.position.max(low);
        let settled = self.mark.ahead.iter().filter(|offset| **offset >= from).count() as u64;
        high.saturating_sub(from).saturating_sub(settled)
    }
}

/// A list of these partitions, with an offset each.
pub(crate) fn list(topic: &str, partitions: impl IntoIterator<Item = (i32, Offset)>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in partitions {
        // an offset of the broker's can be expressed
        let _ = list.add_partition(topic, partition).set_offset(offset);
    }
    list
}

/// The edges of these partitions' logs.
pub(crate) fn edges(
    client: &Client,
    topic: &str,
    partitions: &[i32],
    timeout: Duration,
) -> KafkaResult<HashMap<i32, Edges>> {
    // the protocol's own marks for a time: -2 is the beginning, -1 the end
    let low = offsets(client, topic, partitions, Offset::Beginning, timeout)?;
    let high = offsets(client, topic, partitions, Offset::End, timeout)?;
    let edge = |partition: &i32| {
        Some((*partition, Edges { low: *low.get(partition)?, high: *high.get(partition)? }))
    };
    Ok(partitions.iter().filter_map(edge).collect())
}

/// The first offset at or after a time; none where nothing is as young.
fn offsets(
    client: &Client,
    topic: &str,
    partitions: &[i32],
    at: Offset,
    timeout: Duration,
) -> KafkaResult<HashMap<i32, u64>> {
    let asked = list(topic, partitions.iter().map(|partition| (*partition, at)));
    let found = client.offsets_for_times(asked, timeout)?;
    let mut out = HashMap::new();
    for element in found.elements() {
        element.error()?;
        if let Offset::Offset(offset) = element.offset() {
            out.insert(element.partition(), offset as u64);
        }
    }
    Ok(out)
}

/// What the group wrote down for these partitions.
pub(crate) fn written(
    client: &Client,
    topic: &str,
    partitions: &[i32],
    timeout: Duration,
) -> KafkaResult<HashMap<i32, Written>> {
    let asked = list(topic, partitions.iter().map(|partition| (*partition, Offset::Invalid)));
    let found = client.committed_offsets(asked, timeout)?;
    let mut out = HashMap::new();
    for element in found.elements() {
        element.error()?;
        let Offset::Offset(offset) = element.offset() else { continue };
        let position = offset as u64;
        // the client panics on what isn't UTF-8; that is somebody else's and says nothing to us
        let mark = std::panic::catch_unwind(AssertUnwindSafe(|| mark::read(position, element.metadata())));
        out.insert(element.partition(), Written { position, mark: mark.unwrap_or_default() });
    }
    Ok(out)
}

/// How many partitions the topic had when the group began: the smallest of the `known` number and those in the group's commits. A group without
/// commits begins now. If no commit says the number (older versions and other programs do not), every partition without a commit counts as
/// newer than the group.
pub(crate) fn initial_partitions<'a>(
    known: Option<u32>,
    present: u32,
    marks: impl IntoIterator<Item = &'a Mark>,
) -> u32 {
    let (mut least, mut begun) = (known, known.is_some());
    for mark in marks {
        begun = true;
        least = least.into_iter().chain(mark.initial_partitions).min();
    }
    least.unwrap_or(if begun { 0 } else { present })
}

/// Where partitions begin, and how many the topic had when the group began, as far as that is known.
pub(crate) struct Resolved {
    pub(crate) places: Vec<Place>,
    pub(crate) initial_partitions: Option<u32>,
}

/// Where these partitions begin: where the group stopped, else at `start`. A partition that is newer than the group, or than a subscription
/// without a group, begins at its first offset: its messages were written after the group began. `known` is the number of an earlier call.
pub(crate) fn resolve(
    client: &Client,
    topic: &str,
    partitions: &[i32],
    group: bool,
    start: Start,
    known: Option<u32>,
    timeout: Duration,
) -> KafkaResult<Resolved> {
    // a subscription without a group first takes all partitions that there are, at once
    let known = if group { known } else { known.or(Some(partitions.len() as u32)) };
    if partitions.is_empty() {
        return Ok(Resolved { places: Vec::new(), initial_partitions: known });
    }
    let mut written = if group { written(client, topic, partitions, timeout)? } else { HashMap::new() };
    let mut initial =
        written.values().filter_map(|written| written.mark.initial_partitions).chain(known).min();
    let is_unknown = |partition: &i32| !written.contains_key(partition);
    if group && start != Start::Earliest && partitions.iter().any(is_unknown) {
        let present = present(client, topic, timeout)?;
        let all: Vec<i32> = (0..present as i32).collect();
        let all = self::written(client, topic, &all, timeout)?;
        initial = Some(initial_partitions(initial, present, all.values().map(|written| &written.mark)));
    }
    let begins = begin(client, topic, partitions, start, timeout)?;
    let place = |partition: &i32| {
        let (edges, begin) = *begins.get(partition)?;
        let is_new = initial.is_some_and(|n| *partition as u32 >= n);
        let begin = if is_new { edges.low } else { begin };
        Some(Place::of(*partition, edges, begin, written.remove(partition)))
    };
    Ok(Resolved { places: partitions.iter().filter_map(place).collect(), initial_partitions: initial })
}

/// How many partitions the topic has.
fn present(client: &Client, topic: &str, timeout: Duration) -> KafkaResult<u32> {
    let metadata = client.fetch_metadata(Some(topic), timeout)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    Ok(found.map_or(0, |found| found.partitions().len() as u32))
}

/// The edges of these partitions, and where `start` is in them.
pub(crate) fn begin(
    client: &Client,
    topic: &str,
    partitions: &[i32],
    start: Start,
    timeout: Duration,
) -> KafkaResult<HashMap<i32, (Edges, u64)>> {
    let edges = edges(client, topic, partitions, timeout)?;
    let times = match start {
        Start::Time(ms) => {
            let at = Offset::Offset(i64::try_from(ms).unwrap_or(i64::MAX));
            offsets(client, topic, partitions, at, timeout)?
        }
        _ => HashMap::new(),
    };
    let begin = |(partition, edges): (i32, Edges)| {
        let begin = match start {
            Start::Latest => edges.high,
            Start::Time(_) => times.get(&partition).copied().unwrap_or(edges.high),
            _ => edges.low,
        };
        (partition, (edges, begin))
    };
    Ok(edges.into_iter().map(begin).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(position: u64, ahead: &[u64]) -> Written {
        let starts = Starts { count: 2, reach: 30, ..Starts::default() };
        Written { position, mark: Mark { ahead: ahead.to_vec(), starts, ..Mark::default() } }
    }

    #[test]
    fn what_was_settled_behind_a_gap_does_not_come_again() {
        let edges = Edges { low: 10, high: 20 };
        let place = Place::of(3, edges, 10, Some(written(4, &[6, 9, 10, 12])));
        assert_eq!((place.position, &*place.ahead), (10, &[10, 12][..]));
        assert_eq!(place.gap, Some(Gap::new(3, 4, 10)));
        assert_eq!((place.starts.count, place.starts.reach), (2, 20), "who held it is still known");
        let place = Place::of(3, edges, 10, Some(written(10, &[12])));
        assert_eq!((place.position, &*place.ahead, place.gap), (10, &[12][..], None));
        let other = Place::of(3, edges, 20, Some(written(21, &[])));
        assert_eq!((other.position, other.starts.count, other.gap), (10, 0, None));
        assert_eq!(Place::of(3, edges, 20, None).position, 20);
    }

    fn mark(initial_partitions: Option<u32>) -> Mark {
        Mark { initial_partitions, ..Mark::default() }
    }

    #[test]
    fn a_group_that_wrote_nothing_down_begins_now() {
        assert_eq!(initial_partitions(None, 4, []), 4);
        assert_eq!(
            initial_partitions(Some(1), 4, []),
            1,
            "it began in this process, and has not committed yet"
        );
        assert_eq!(initial_partitions(None, 4, [&mark(None)]), 0, "an older version's, or another program's");
        assert_eq!(initial_partitions(None, 4, [&mark(None), &mark(Some(2))]), 2);
        assert_eq!(initial_partitions(Some(3), 4, [&mark(None)]), 3);
    }

    proptest! {
        /// A topic that grows while members of any version come and go: the next member distinguishes the partitions that existed when the
        /// group began from those that were added.
        #[test]
        fn the_beginning_is_known_from_any_mark_that_says_it(
            began_with in 1_u32..10,
            more in prop::collection::vec(prop::option::of(Just(())), 1..10),
            present in 10_u32..20,
        ) {
            let mut marks: Vec<_> = more.into_iter().map(|says| mark(says.map(|()| began_with))).collect();
            marks.push(mark(Some(began_with)));
            prop_assert_eq!(initial_partitions(None, present, &marks), began_with);
            // a member that took another number for the beginning makes it earlier, never later
            marks.push(mark(Some(present)));
            prop_assert_eq!(initial_partitions(None, present, &marks), began_with);
        }
    }

    #[test]
    fn a_lag_counts_what_the_log_still_has() {
        let edges = Edges { low: 10, high: 20 };
        assert_eq!(written(12, &[13, 15]).lag(edges), 6);
        assert_eq!(
            written(0, &[1, 2, 9, 10, 19]).lag(edges),
            8,
            "what is settled below the log's beginning isn't in it"
        );
        assert_eq!(written(20, &[]).lag(edges), 0);
        assert_eq!(written(25, &[]).lag(edges), 0);
    }
}
