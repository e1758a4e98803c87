use bytes::Bytes;
use postrider_core::{BoxFuture, Claim, Delivery, Envelope, Settle, SettleError, Settlement, Token};

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};

use super::*;
use crate::ahead::{Found, Record};
use crate::watermark::Watermark;

/// What the client has of a partition.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<VecDeque<Found>>>);

impl Log {
    fn put(&self, offsets: impl IntoIterator<Item = u64>) {
        let record = |offset| {
            let envelope = Envelope::builder(Bytes::from_static(b"x")).build(&Env::seeded(offset)).unwrap();
            Ok(Record { offset, sent_ms: 0, envelope })
        };
        self.0.lock().unwrap().extend(offsets.into_iter().map(record));
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

/// A member that holds partition 0 from its beginning.
fn member() -> (Shared<Log>, Log) {
    let window = Window { messages: 100, bytes: 1 << 20 };
    let shared =
        Shared::new("t".into(), Source::Channel, Order::None, window, Env::seeded(1), Arc::default());
    let log = Log::default();
    shared.assign(0, log.clone(), Watermark::new(0, []), None);
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
    assert_eq!(offsets(&shared), [1, 9]);
    assert!(shared.settle(&[(token(&first), Settlement::Ack)]).is_empty(), "its claim holds");
    assert_eq!(shared.places()[&0], (1, 7), "2 to 8 count as settled");
}

#[test]
fn no_more_is_held_than_the_windows_bytes_and_a_message_beside() {
    // each message has 1 byte and its id
    let (shared, log) = member();
    log.put(0..90);
    let each = receive(&shared).1[0].envelope.byte_len();
    for (room, beside) in [(3 * each, 1), (3 * each - 1, 1), (each, 1)] {
        let (shared, log) = member();
        shared.state().window.bytes = room;
        log.put(0..90);
        let out = receive(&shared).1.len();
        assert_eq!(out, (room / each).max(1));
        receive(&shared);
        let read = 90 - log.0.lock().unwrap().len();
        assert!(read <= out + beside, "{read} were read, {out} are out");
    }
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
        let later = Settlement::GiveBack(Some(std::time::Duration::from_mins(1)));
        let back: Vec<_> = out.iter().map(|delivery| (delivery.claim.token(), later)).collect();
        assert!(shared.settle(&back).is_empty());
    }
    assert_eq!(given, 100, "the window's messages");
    let now = shared.env.now() + std::time::Duration::from_secs(61);
    assert_eq!(shared.wake_due(now), None);
    assert_eq!(offsets(&shared).len(), 100);
    assert_eq!(shared.in_flight().messages, 100);
    assert_eq!(shared.state().partitions[&0].kept, InFlight::default());
}

#[test]
fn what_comes_from_a_new_place_is_neither_forgotten_nor_taken_for_the_old_ones() {
    let (shared, log) = member();
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
