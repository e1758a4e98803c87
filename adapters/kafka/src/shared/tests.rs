use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use postrider_core::{BoxFuture, Claim, Delivery, Envelope, Settle, SettleError, Settlement, Token};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::*;
use crate::ahead::{Found, Record};
use crate::watermark::Watermark;

/// What the client has of a partition, and how often it was asked for it.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<VecDeque<Found>>>, Arc<AtomicU64>);

impl Log {
    fn put(&self, offsets: impl IntoIterator<Item = u64>) {
        offsets.into_iter().for_each(|offset| self.put_one(offset, 0, 1));
    }

    fn put_one(&self, offset: u64, sent_ms: u64, size: usize) {
        let body = Envelope::builder(Bytes::from(vec![b'x'; size]));
        let envelope = body.build(&Env::seeded(offset)).unwrap();
        self.0.lock().unwrap().push_back(Ok(Record { offset, sent_ms, envelope }));
    }

    fn fail(&self) {
        self.0.lock().unwrap().push_back(Err(KafkaError::MessageConsumption(Code::BadMessage)));
    }

    /// The client reads from another place: what it had is dropped.
    fn seek(&self, offsets: impl IntoIterator<Item = u64>) {
        self.0.lock().unwrap().clear();
        self.put(offsets);
    }
}

impl Queue for Log {
    fn next(&mut self) -> Option<Found> {
        self.1.fetch_add(1, SeqCst);
        self.0.lock().unwrap().pop_front()
    }
}

#[derive(Debug)]
struct Nobody;

impl Settle for Nobody {
    fn settle(&self, _: &[(Token, Settlement)]) -> Result<(), SettleError> {
        Ok(())
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), SettleError>> {
        Box::pin(async { Ok(()) })
    }
}

fn subscription(source: Source, window: Window) -> Shared<Log> {
    Shared::new("t".into(), source, Order::None, window, Env::seeded(1), Arc::default())
}

/// Partition `number` from its beginning, by a member that writes nothing down.
fn hold(shared: &Shared<Log>, number: i32) -> Log {
    let log = Log::default();
    shared.assign(number, log.clone(), Watermark::new(0, []), None);
    log
}

/// A member that holds partition 0.
fn member() -> (Shared<Log>, Log) {
    let shared = subscription(Source::Channel, Window { messages: 100, bytes: 1 << 20 });
    let log = hold(&shared, 0);
    (shared, log)
}

fn receive(shared: &Shared<Log>) -> (Option<Signal>, Vec<Delivery>) {
    let mut into = Vec::new();
    let claim = |token| Claim::new(Arc::new(Nobody) as Arc<dyn Settle>, token);
    let signal = shared.receive(100, InFlight::default(), &mut into, claim).unwrap();
    (signal, into)
}

fn offsets(shared: &Shared<Log>) -> Vec<u64> {
    receive(shared).1.iter().map(|delivery| delivery.origin.position).collect()
}

fn read_ahead(shared: &Shared<Log>) {
    let queue = Arc::clone(&shared.state().partitions[&0].queue);
    queue.read(1, || {});
}

/// Whether it comes true within a time in which a thread runs also on a busy machine.
fn soon(holds: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !holds() && begun.elapsed() < Duration::from_mins(1) {
        thread::yield_now();
    }
    holds()
}

#[test]
fn whoever_receives_much_wakes_the_thread_that_reads_ahead() {
    let (shared, log) = member();
    thread::scope(|scope| {
        scope.spawn(|| shared.read_ahead());
        // once it has found nothing, it sleeps
        let looked = soon(|| log.1.load(SeqCst) > 0);
        log.put(0..200);
        let received = offsets(&shared).len();
        let read = soon(|| log.0.lock().unwrap().is_empty());
        shared.close();
        assert!(looked && read, "looked: {looked}, read: {read}");
        assert_eq!(received, 100);
    });
}

#[test]
fn after_an_error_nothing_comes_until_the_place_is_sure_and_then_all_of_it() {
    for ahead in [false, true] {
        let (shared, log) = member();
        log.put([0, 1]);
        log.fail();
        log.put([3, 4]);
        if ahead {
            read_ahead(&shared);
        }
        assert_eq!(offsets(&shared), [0, 1]);
        assert_eq!(offsets(&shared), [0; 0]);
        assert_eq!(shared.troubled(), [(0, 2)]);
        shared.begin_move(&[0]);
        log.seek(2..6);
        shared.mended(0, 2);
        assert_eq!(offsets(&shared), [2, 3, 4, 5], "read ahead: {ahead}");
        assert!(shared.troubled().is_empty());
    }
}

#[test]
fn where_the_log_has_no_more_what_is_held_stays_and_what_waits_is_handed_out() {
    let (shared, log) = member();
    log.put([0, 1]);
    log.fail();
    let (_, mut out) = receive(&shared);
    let (first, second) = (out.remove(0), out.remove(0));
    let token = |delivery: &Delivery| delivery.claim.token();
    assert_eq!(shared.troubled(), [(0, 2)]);
    // what is given back waits here
    assert!(shared.settle(&[(token(&second), Settlement::GiveBack(None))]).is_empty());
    assert_eq!(offsets(&shared), [0; 0], "its place isn't known");
    shared.begin_move(&[0]);
    log.seek([9]);
    shared.mended(0, 8);
    let gap = Gap::new(0, 2, 8);
    assert_eq!(receive(&shared).0, Some(Signal::Gap(gap)), "told before anything from behind it");
    assert_eq!(offsets(&shared), [1, 9]);
    assert!(shared.settle(&[(token(&first), Settlement::Ack)]).is_empty(), "its claim holds");
    let edges = HashMap::from([(0, crate::positions::Edges { low: 8, high: 20 })]);
    assert_eq!(shared.lags(&edges)[&0], 12, "1 and 9 are out, 10 to 19 are unread");
}

#[test]
fn offsets_without_a_message_are_no_lag_once_the_client_is_behind_them() {
    let (shared, log) = member();
    let edges = HashMap::from([(0, crate::positions::Edges { low: 0, high: 6 })]);
    log.put([0, 1]);
    let drained = shared.drained();
    // the client says that it has handed out all below 6, and two of it wait in the stock
    read_ahead(&shared);
    shared.pass_to(&drained, [(0, 6)]);
    assert_eq!(shared.lags(&edges)[&0], 6, "what waits to be received may lie anywhere below");
    let (_, out) = receive(&shared);
    assert_eq!(out.len(), 2);
    shared.pass_to(&HashMap::new(), [(0, 6)]);
    assert_eq!(shared.lags(&edges)[&0], 6, "it was not known to be drained before");
    shared.pass_to(&shared.drained(), [(0, 6), (7, 9)]);
    assert_eq!(shared.lags(&edges)[&0], 2, "those that are out");
    for delivery in &out {
        shared.settle(&[(delivery.claim.token(), Settlement::Ack)]);
    }
    assert_eq!(shared.lags(&edges)[&0], 0);
    shared.pass_to(&shared.drained(), [(0, 3)]);
    assert_eq!(shared.nexts(), [(0, 6)], "never back");
}

#[test]
fn a_partition_that_was_moved_or_is_troubled_passes_nothing() {
    let (shared, log) = member();
    log.put([0]);
    assert_eq!(offsets(&shared), [0]);
    let drained = shared.drained();
    shared.begin_move(&[0]);
    shared.pass_to(&drained, [(0, 9)]);
    shared.moved(0, 3);
    shared.pass_to(&drained, [(0, 9)]);
    assert_eq!(shared.nexts(), [(0, 3)]);
    let drained = shared.drained();
    // a message came past the partition's queue, and the client's position is behind it
    shared.trouble(0);
    assert!(shared.drained().is_empty());
    shared.pass_to(&drained, [(0, 9)]);
    assert_eq!(shared.nexts(), [(0, 3)]);
}

#[test]
fn no_more_than_one_message_is_read_that_has_no_room() {
    let (shared, log) = member();
    log.put(0..1);
    let each = receive(&shared).1[0].envelope.byte_len();
    // a window of as many, of less, of less than one
    for (room, out) in [(3 * each, 3), (3 * each - 1, 2), (each, 1), (each - 1, 1)] {
        let shared = subscription(Source::Channel, Window { messages: 100, bytes: room });
        let log = hold(&shared, 0);
        log.put(0..90);
        assert_eq!(receive(&shared).1.len(), out);
        receive(&shared);
        let read = 90 - log.0.lock().unwrap().len();
        assert!(read <= out + 1, "{read} were read, {out} are out");
    }
}

#[test]
fn a_message_without_room_is_not_passed_by_for_ever() {
    let (shared, log) = member();
    log.put(0..1);
    let each = receive(&shared).1[0].envelope.byte_len();
    let shared = subscription(Source::Channel, Window { messages: 100, bytes: 8 * each });
    let (one, other) = (hold(&shared, 0), hold(&shared, 1));
    other.put(0..100);
    let (_, mut out) = receive(&shared);
    assert_eq!(out.len(), 8, "the window is full of small ones");
    one.put_one(0, 0, 5 * each);
    let mut rounds = 0;
    while !out.iter().any(|delivery| delivery.envelope.payload().len() > 1) {
        // one is done with at a time, so that there is always room for a small one
        let done = out.remove(0);
        assert!(shared.settle(&[(done.claim.token(), Settlement::Ack)]).is_empty());
        out.extend(receive(&shared).1);
        rounds += 1;
        assert!(rounds < 30, "others go on passing it by");
    }
}

#[test]
fn a_retry_that_rests_keeps_nothing_else_from_being_read() {
    let shared = subscription(Source::Group, Window { messages: 1, bytes: 1 << 20 });
    let (redriven, hours) = (hold(&shared, 0), hold(&shared, 5));
    let now_ms = shared.env.wall_ms();
    hours.put_one(0, now_ms, 1);
    assert_eq!(offsets(&shared), [0; 0]);
    redriven.put(0..3);
    for offset in 0..3 {
        let (_, out) = receive(&shared);
        assert_eq!(out.iter().map(|d| d.origin.position).collect::<Vec<_>>(), [offset]);
        assert!(shared.settle(&[(out[0].claim.token(), Settlement::Ack)]).is_empty());
    }
    let later = shared.env.now() + Duration::from_hours(2);
    assert_eq!(shared.wake_due(later), None);
    assert_eq!(shared.state().partitions[&5].kept.messages, 1, "now it waits as others do");
    assert_eq!(offsets(&shared), [0]);
    assert_eq!(shared.state().partitions[&5].kept, InFlight::default());
}

#[test]
fn a_member_that_writes_nothing_down_goes_on_after_a_move() {
    let (shared, log) = member();
    log.put(0..3);
    assert_eq!(offsets(&shared), [0, 1, 2]);
    shared.begin_move(&[0]);
    log.seek([1]);
    shared.moved(0, 1);
    receive(&shared);
    receive(&shared);
    assert_eq!(offsets(&shared), [1]);
}

#[test]
fn what_is_given_back_for_later_counts_until_it_is_out_again() {
    let (shared, log) = member();
    log.put(0..500);
    let mut given = 0;
    loop {
        let (_, out) = receive(&shared);
        if out.is_empty() {
            break;
        }
        given += out.len();
        let later = Settlement::GiveBack(Some(Duration::from_mins(1)));
        let back: Vec<_> = out.iter().map(|delivery| (delivery.claim.token(), later)).collect();
        assert!(shared.settle(&back).is_empty());
    }
    assert_eq!(given, 100, "the window's messages");
    let now = shared.env.now() + Duration::from_secs(61);
    assert_eq!(shared.wake_due(now), None);
    assert_eq!(offsets(&shared).len(), 100);
    assert_eq!(shared.in_flight().messages, 100);
    assert_eq!(shared.state().partitions[&0].kept, InFlight::default());
}

#[test]
fn what_comes_from_a_new_place_is_neither_forgotten_nor_taken_for_the_old_ones() {
    let shared = subscription(Source::Channel, Window { messages: 100, bytes: 1 << 20 });
    let log = Log::default();
    shared.assign(0, log.clone(), Watermark::new(0, []), Some(crate::mark::Starts::default()));
    shared.committed(&shared.to_commit());
    log.put(0..3);
    read_ahead(&shared);
    shared.begin_move(&[0]);
    log.seek([7, 8]);
    read_ahead(&shared);
    assert_eq!(offsets(&shared), [0; 0], "its place is being changed");
    shared.moved(0, 7);
    assert!(matches!(receive(&shared).0, Some(Signal::Lost(_))));
    assert!(matches!(receive(&shared).0, Some(Signal::Assigned(_))));
    assert_eq!(offsets(&shared), [0; 0], "not written down yet");
    shared.committed(&shared.to_commit());
    assert_eq!(offsets(&shared), [7, 8]);
}

#[test]
fn a_partition_that_goes_gives_its_queue_back_and_takes_its_trouble_with_it() {
    let (shared, log) = member();
    log.put([0]);
    log.fail();
    assert_eq!(offsets(&shared), [0]);
    assert_eq!(Arc::strong_count(&log.0), 2);
    // whoever reads ahead may have it in hand
    let queue = Arc::clone(&shared.state().partitions[&0].queue);
    assert_eq!(shared.remove(&[0]).len(), 1, "something was out");
    assert_eq!(Arc::strong_count(&log.0), 1);
    drop(queue);
    assert!(shared.troubled().is_empty());
    log.seek([1]);
    shared.assign(0, log.clone(), Watermark::new(1, []), None);
    assert_eq!(offsets(&shared), [1]);
}
