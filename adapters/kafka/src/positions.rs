//! Where reading begins: from what the group wrote down, from the log's edges, from a time. Every request blocks its thread.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::thread;
use std::time::{Duration, Instant};

use postrider_core::{Gap, Start};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::mark::{self, Mark, Starts};
use crate::rebalance::Client;

/// How long a partition that has no leader at this moment, since it is new or moves, isn't asked again.
const BETWEEN_LEADERS: Duration = Duration::from_millis(50);

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
    of_leaders(timeout, |left| {
        let asked = list(topic, partitions.iter().map(|partition| (*partition, at)));
        let found = client.offsets_for_times(asked, left)?;
        let mut out = HashMap::new();
        for element in found.elements() {
            element.error()?;
            if let Offset::Offset(offset) = element.offset() {
                out.insert(element.partition(), offset as u64);
            }
        }
        Ok(out)
    })
}

/// What only partitions' leaders can answer; while one has none, it is asked for again.
pub(crate) fn of_leaders<T>(
    timeout: Duration,
    mut ask: impl FnMut(Duration) -> KafkaResult<T>,
) -> KafkaResult<T> {
    let until = Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match ask(left) {
            Err(error) if left > BETWEEN_LEADERS && has_no_leader(&error) => thread::sleep(BETWEEN_LEADERS),
            found => return found,
        }
    }
}

fn has_no_leader(error: &KafkaError) -> bool {
    matches!(error.rdkafka_error_code(), Some(Code::NotLeaderForPartition | Code::LeaderNotAvailable))
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

/// Where these partitions begin: where the group stopped, else at `start`.
pub(crate) fn resolve(
    client: &Client,
    topic: &str,
    partitions: &[i32],
    group: bool,
    start: Start,
    timeout: Duration,
) -> KafkaResult<Vec<Place>> {
    if partitions.is_empty() {
        return Ok(Vec::new());
    }
    let mut written = if group { written(client, topic, partitions, timeout)? } else { HashMap::new() };
    let begins = begin(client, topic, partitions, start, timeout)?;
    let new = |partition, position| {
        let (ahead, starts) = (Vec::new(), Starts::default());
        Place { partition, position, ahead, starts, gap: None }
    };
    let place = |partition: &i32| {
        let (edges, begin) = *begins.get(partition)?;
        let partition = *partition;
        Some(match written.remove(&partition) {
            None => new(partition, begin),
            Some(Written { position, .. }) if position < edges.low => {
                let gap = Some(Gap::new(partition as u32, position, edges.low));
                Place { gap, ..new(partition, edges.low) }
            }
            // another log under the same name: read it from its beginning rather than miss anything
            Some(Written { position, .. }) if position > edges.high => new(partition, edges.low),
            Some(Written { position, mark: Mark { ahead, mut starts } }) => {
                // what came later was never out
                starts.reach = starts.reach.min(edges.high);
                Place { partition, position, ahead, starts, gap: None }
            }
        })
    };
    Ok(partitions.iter().filter_map(place).collect())
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
    use super::*;

    #[test]
    fn a_partition_without_a_leader_is_asked_again_until_the_time_is_over() {
        const TIMEOUT: Duration = Duration::from_millis(300);
        let refused = KafkaError::MetadataFetch;
        let mut lefts = Vec::new();
        let found = of_leaders(TIMEOUT, |left| {
            lefts.push(left);
            if lefts.len() < 3 { Err(refused(Code::NotLeaderForPartition)) } else { Ok(7) }
        });
        assert!(found.is_ok_and(|found| found == 7) && lefts.len() == 3);
        assert!(lefts.is_sorted_by(|earlier, later| later < earlier), "all within one time-out: {lefts:?}");
        let (began, mut asked) = (Instant::now(), 0);
        let found: KafkaResult<()> = of_leaders(TIMEOUT, |_| {
            asked += 1;
            Err(refused(Code::LeaderNotAvailable))
        });
        assert!(found.is_err() && asked > 1 && began.elapsed() + BETWEEN_LEADERS >= TIMEOUT);
        let mut asked = 0;
        let found: KafkaResult<()> = of_leaders(TIMEOUT, |_| {
            asked += 1;
            Err(refused(Code::TopicAuthorizationFailed))
        });
        assert!(found.is_err() && asked == 1, "nothing else is asked again");
    }
}
