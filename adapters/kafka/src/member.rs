//! The thread of one member: it polls the client, answers rebalances, writes down the group's place, keeps time. Messages don't
//! pass through it, so that no handler can delay it, nor it a message.

mod places;

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use postrider_core::{Env, Error, ErrorKind, Result, Signal, Start, deadline_from};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::topic_partition_list::Offset;
use tokio::sync::{oneshot, watch};

use crate::committer::Committer;
use crate::error;
use crate::members::Members;
use crate::positions;
use crate::rebalance::{Client, Event};
use crate::shared::{Commit, Shared};

/// How long the thread sleeps when nothing is due.
const IDLE: Duration = Duration::from_millis(500);
/// How long after its time the place may be unwritten before nothing more is handed out.
const UNWRITTEN: Duration = Duration::from_millis(250);
/// How long a leaving member waits for its last commit.
const LAST_COMMIT: Duration = Duration::from_secs(5);
/// How long something that failed isn't tried again.
const BACK_OFF: Duration = Duration::from_millis(100);

/// What a member is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    /// Moves every partition held to another place.
    Seek(Start, oneshot::Sender<Result<()>>),
    /// Leaves.
    Stop,
}

/// How far a member has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// How often partitions came or went.
    pub(crate) rounds: u32,
    /// How many are held.
    pub(crate) held: usize,
    /// It has ended by itself, and the subscription says why.
    pub(crate) ended: bool,
    /// The thread is through.
    pub(crate) done: bool,
}

/// The client, as long as the member has it.
pub(crate) type SharedClient = Arc<Mutex<Option<Arc<Client>>>>;

/// What a member is made of.
pub(crate) struct Member {
    pub(crate) client: Arc<Client>,
    pub(crate) committer: Committer,
    pub(crate) lent: SharedClient,
    pub(crate) shared: Arc<Shared>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) topic: String,
    /// One of a group, or alone with all partitions.
    pub(crate) group: bool,
    pub(crate) start: Start,
    pub(crate) env: Env,
    pub(crate) commit_interval: Duration,
    pub(crate) release_timeout: Duration,
}

/// Partitions on their way to another member.
struct Revoking {
    partitions: Vec<i32>,
    /// What runs under them has until then.
    deadline: Instant,
    /// Nothing runs any more; the last commit has until then.
    drained: Option<Instant>,
}

/// The member at work.
struct Work {
    member: Member,
    /// Partitions that came and aren't taken yet, and when to try.
    assigning: Option<(Vec<i32>, Instant)>,
    revoking: Option<Revoking>,
    /// What is being written down.
    committing: Option<Vec<Commit>>,
    next_commit: Instant,
    /// Since when there is something to write down that isn't.
    unwritten: Option<Instant>,
    /// When the topic is checked next.
    next_check: Instant,
    /// The last check did not find the topic.
    topic_absent: bool,
    /// When the client is asked for its positions next.
    next_pass: Instant,
}

impl Member {
    /// Starts the thread.
    pub(crate) fn start(self, members: &Members) -> Result<()> {
        let entered = members.enter();
        let (shared, ahead) = (Arc::clone(&self.shared), members.enter());
        spawn("postrider-kafka", move || {
            let _entered = entered;
            let progress = self.progress.clone();
            Work::run(self);
            progress.send_modify(|progress| progress.done = true);
        })?;
        let reading = Arc::clone(&shared);
        let spawned = spawn("postrider-ahead", move || {
            let _entered = ahead;
            reading.read_ahead();
        });
        // the other one ends with it
        spawned.inspect_err(|_| shared.close())
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let spawned = std::thread::Builder::new().name(name.into()).spawn(work);
    spawned.map(drop).map_err(|e| {
        Error::new(ErrorKind::Broker, "subscribe", "the system gives no thread for the subscription")
            .because(e)
    })
}

impl Work {
    fn run(member: Member) {
        member.shared.waker.here();
        let now = Instant::now();
        let mut work = Self {
            member,
            assigning: None,
            revoking: None,
            committing: None,
            next_commit: now,
            unwritten: None,
            next_check: now,
            topic_absent: false,
            next_pass: now,
        };
        if !work.member.group {
            work.take_all();
        }
        loop {
            work.poll();
            work.handle_events();
            work.check_topic();
            work.assign();
            work.revoke();
            work.mend();
            work.pass_offsets_without_messages();
            if !work.obey() {
                break;
            }
            let due = work.member.shared.wake_due(work.member.env.now());
            work.commit();
            work.hold_back();
            std::thread::park_timeout(work.rest(due));
        }
        work.leave();
    }

    /// Lets the client speak until it has nothing more to say.
    fn poll(&mut self) {
        loop {
            let before = self.member.client.context().calls();
            match self.member.client.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    use rdkafka::Message as _;
                    // every partition has a queue of its own; what came past it is read again from its place
                    let partition = message.partition();
                    drop(message);
                    self.member.shared.trouble(partition);
                }
                Some(Err(error)) => self.complain(error),
                None if self.member.client.context().calls() == before => return,
                None => {}
            }
        }
    }

    fn complain(&self, found: KafkaError) {
        let code = found.rdkafka_error_code();
        let for_good = matches!(found, KafkaError::MessageConsumptionFatal(_))
            || matches!(
                code,
                Some(
                    Code::InvalidSessionTimeout
                        | Code::InconsistentGroupProtocol
                        | Code::InvalidGroupId
                        | Code::GroupAuthorizationFailed
                        | Code::TopicAuthorizationFailed
                        | Code::UnsupportedVersion
                        | Code::UnsupportedFeature
                )
            );
        if matches!(code, Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition)) {
            self.member.shared.suspect_topic();
        }
        if for_good {
            self.member.shared.end(error::client("receive", found).with("topic", &self.member.topic));
            self.member.progress.send_modify(|progress| progress.ended = true);
        } else {
            tracing::debug!(target: "postrider::connection", ?code, topic = self.member.topic, "consumer error");
        }
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.member.client.context().next() {
            match event {
                Event::Assign(partitions) => self.assigning = Some((partitions, Instant::now())),
                Event::Revoke(partitions) => self.begin_revoke(partitions),
                Event::Committed(result) => self.committed(result),
            }
        }
    }

    fn round(&self) {
        let held = self.member.shared.numbers().len();
        self.member.progress.send_modify(|progress| {
            progress.rounds += 1;
            progress.held = held;
        });
    }

    fn begin_revoke(&mut self, partitions: Vec<i32>) {
        // an assignment that wasn't taken yet goes with it
        self.assigning = None;
        let claims = self.member.shared.begin_revoke(&partitions);
        if self.member.client.assignment_lost() {
            if !claims.is_empty() {
                self.member.shared.event(Signal::Lost(claims));
            }
            self.give_up(&partitions);
            return;
        }
        if !claims.is_empty() {
            self.member.shared.event(Signal::Revoking(claims));
        }
        let deadline = deadline_from(Instant::now(), self.member.release_timeout);
        self.revoking = Some(Revoking { partitions, deadline, drained: None });
    }

    /// Goes on with a revocation: first what runs ends, then the place is written down, then the partitions go.
    fn revoke(&mut self) {
        let Some(mut revoking) = self.revoking.take() else { return };
        let (now, shared) = (Instant::now(), &self.member.shared);
        let lost = self.member.client.assignment_lost();
        if !lost
            && revoking.drained.is_none()
            && (shared.is_drained(&revoking.partitions) || now >= revoking.deadline)
        {
            revoking.drained = Some(now + LAST_COMMIT);
        }
        let through = match revoking.drained {
            _ if lost => true,
            None => false,
            Some(until) => {
                if self.committing.is_none() {
                    self.write(now);
                }
                now >= until || !self.member.shared.is_dirty()
            }
        };
        if !through {
            self.revoking = Some(revoking);
            return;
        }
        self.give_up(&revoking.partitions);
    }

    fn give_up(&mut self, partitions: &[i32]) {
        let Member { client, shared, topic, .. } = &self.member;
        let cut = shared.remove(partitions);
        if !cut.is_empty() {
            shared.event(Signal::Lost(cut));
        }
        let list = positions::list(topic, partitions.iter().map(|partition| (*partition, Offset::Invalid)));
        if let Err(error) = client.incremental_unassign(&list) {
            tracing::debug!(target: "postrider::connection", %error, topic, "the partitions were gone already");
        }
        self.round();
    }

    /// Does what was asked for; `false`: it is to leave.
    fn obey(&mut self) -> bool {
        loop {
            match self.member.commands.try_recv() {
                Ok(Command::Seek(start, answer)) => {
                    // nobody waits any more: fine
                    let _ = answer.send(self.seek(start));
                }
                Ok(Command::Stop) | Err(mpsc::TryRecvError::Disconnected) => return false,
                Err(mpsc::TryRecvError::Empty) => return true,
            }
        }
    }

    /// Writes the place down when it is time, or when somebody waits for it.
    fn commit(&mut self) {
        let now = Instant::now();
        if self.committing.is_some() || !self.member.group {
            return;
        }
        if now >= self.next_commit || self.member.shared.is_flush_wanted() {
            self.write(now);
        }
    }

    fn write(&mut self, now: Instant) {
        let commits = self.member.shared.to_commit();
        if commits.is_empty() {
            return;
        }
        self.next_commit = deadline_from(now, self.member.commit_interval);
        self.member.committer.write(commits.clone());
        self.committing = Some(commits);
    }

    /// Where the place can't be written down, the broker is away or another generation of the group is at work: what would be
    /// handed out now would be handled again by whoever comes next.
    fn hold_back(&mut self) {
        let unwritten = self.member.group && (self.committing.is_some() || self.member.shared.is_dirty());
        if !unwritten {
            self.unwritten = None;
        } else if self.unwritten.is_none() {
            self.unwritten = Some(Instant::now());
        }
        let since = self.unwritten.map_or(Duration::ZERO, |since| since.elapsed());
        self.member.shared.hold_back(since >= self.member.commit_interval + UNWRITTEN);
    }

    fn committed(&mut self, result: std::result::Result<(), Code>) {
        let Some(commits) = self.committing.take() else { return };
        match result {
            Ok(()) => {
                self.member.shared.committed(&commits);
                self.unwritten = None;
            }
            Err(code) => {
                // by another generation of the group, or the broker is away: it stays to be written
                tracing::debug!(target: "postrider::settle", ?code, topic = self.member.topic, "the place wasn't written down");
                self.next_commit = Instant::now() + BACK_OFF;
            }
        }
    }

    /// How long nothing is to be done.
    fn rest(&self, timer: Option<Instant>) -> Duration {
        let now = Instant::now();
        let mut rest = IDLE;
        if let Some((_, at)) = &self.assigning {
            rest = rest.min(at.saturating_duration_since(now));
        }
        if self.revoking.is_some() {
            rest = rest.min(Duration::from_millis(20));
        }
        if let Some(due) = timer {
            rest = rest.min(due.saturating_duration_since(self.member.env.now()));
        }
        if self.member.group && self.committing.is_none() && self.member.shared.is_dirty() {
            rest = rest.min(self.next_commit.saturating_duration_since(now));
        }
        if let Some(since) = self.unwritten {
            let behind = deadline_from(since, self.member.commit_interval.saturating_add(UNWRITTEN));
            rest = rest.min(behind.saturating_duration_since(now).max(Duration::from_millis(20)));
        }
        rest
    }

    /// Writes down what was settled last, gives up the partitions and leaves the group.
    fn leave(mut self) {
        self.member.shared.close();
        let until = Instant::now() + LAST_COMMIT;
        while self.member.group
            && (self.committing.is_some() || self.member.shared.is_dirty())
            && !self.member.client.assignment_lost()
            && Instant::now() < until
        {
            if self.committing.is_none() && Instant::now() >= self.next_commit.min(until) {
                self.write(Instant::now());
            }
            std::thread::park_timeout(Duration::from_millis(10));
            self.poll();
            self.handle_events();
        }
        let Self { member, .. } = self;
        member.shared.remove(&member.shared.numbers());
        member.client.context().close();
        drop(member.committer);
        member.lent.lock().unwrap_or_else(PoisonError::into_inner).take();
        // whoever still asks it something is through soon, and wakes this thread when it has let go; the client leaves the group when
        // it is dropped, here
        let patience = Instant::now() + LAST_COMMIT;
        while Arc::strong_count(&member.client) > 1 && Instant::now() < patience {
            std::thread::park_timeout(patience.saturating_duration_since(Instant::now()));
        }
        drop(member.client);
    }
}
