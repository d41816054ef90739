//! The thread of a consumer: everything that librdkafka wants done between two polls.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, EventKind, Events};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use crate::convert::{self, Copies};
use crate::error;
use crate::inbox::{Inbox, Incoming, Mark, Plan};
use crate::link::{Watch, partitions};

/// The longest sleep: answers and new messages wake the thread, this serves the rest.
const TICK: Duration = Duration::from_millis(100);
/// The sleep while somebody waits for a commit, which is tried again in this time when it fails.
const FLUSH_TICK: Duration = Duration::from_millis(10);
/// How long a full consumer goes without a poll before its partitions are paused, so that it can poll on.
const PATIENCE: Duration = Duration::from_millis(500);
/// Messages that are handed over together.
const CHUNK: usize = 512;
/// Messages that are taken at a time of a consumer that is paused.
const STRAGGLERS: usize = 64;
/// How long a topic must be missing before the consumer gives up.
const MISSING_FOR: Duration = Duration::from_secs(3);
/// How often offsets that are left out are looked into.
const GAP_INTERVAL: Duration = Duration::from_secs(1);
/// How long a look at the metadata may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// Called by librdkafka from within a poll, on the consumer's thread.
pub(crate) struct Context {
    watch: Watch,
    inbox: Arc<Inbox>,
    topic: String,
    subject: Arc<str>,
    events: Events,
    /// Whether a poll that returned nothing did something all the same.
    served: AtomicBool,
    /// The broker refused notes beside the positions.
    no_notes: AtomicBool,
    paused: Mutex<BTreeSet<i32>>,
    /// Where partitions start when they are first assigned; others start at the group's position.
    starts: Mutex<Vec<(i32, i64)>>,
}

pub(crate) type Native = BaseConsumer<Context>;

impl Context {
    pub(crate) fn new(
        watch: Watch,
        inbox: Arc<Inbox>,
        topic: &str,
        subject: &str,
        events: Events,
        starts: Vec<(i32, i64)>,
    ) -> Self {
        Self {
            watch,
            inbox,
            topic: topic.to_owned(),
            subject: subject.into(),
            events,
            served: AtomicBool::new(false),
            no_notes: AtomicBool::new(false),
            paused: Mutex::default(),
            starts: Mutex::new(starts),
        }
    }

    fn list(&self, partitions: impl IntoIterator<Item = i32>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition);
        }
        list
    }

    /// Commits and waits for the broker's answer: librdkafka tells what came of it in no other way, because the
    /// bindings set no callback for commits of one's own. While brokers are away this takes up to the session's
    /// timeout.
    fn commit(&self, consumer: &Native, marks: &[Mark]) -> Result<(), Error> {
        let notes = !self.no_notes.load(Ordering::Relaxed);
        let result = self.positions(marks, notes).and_then(|list| consumer.commit(&list, CommitMode::Sync));
        match result {
            Err(error) if notes && error.rdkafka_error_code() == Some(Code::OffsetMetadataTooLarge) => {
                tracing::warn!(
                    topic = self.topic,
                    "the broker takes no notes of this length: done ones may come again"
                );
                self.no_notes.store(true, Ordering::Relaxed);
                self.commit(consumer, marks)
            }
            other => other.map_err(|e| error::of(e, "commit")),
        }
    }

    fn positions(&self, marks: &[Mark], notes: bool) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::with_capacity(marks.len());
        for mark in marks {
            list.add_partition_offset(&self.topic, mark.partition, Offset::Offset(mark.offset))?;
            if notes
                && !mark.note.is_empty()
                && let Some(mut element) = list.find_partition(&self.topic, mark.partition)
            {
                element.set_metadata(&mark.note);
            }
        }
        Ok(list)
    }

    fn assign(&self, consumer: &Native, list: &mut TopicPartitionList) -> KafkaResult<()> {
        let partitions = numbers(list);
        let mut committed = self.committed(consumer, list);
        for (partition, offset) in self.starts.lock().extract_if(.., |(p, _)| partitions.contains(p)) {
            committed.insert(partition, (offset, String::new()));
        }
        committed.retain(|partition, (offset, _)| {
            // Without an offset librdkafka asks for the position itself.
            list.set_partition_offset(&self.topic, *partition, Offset::Offset(*offset)).is_ok()
        });
        self.inbox.assigned(partitions.into_iter().map(|p| (p, committed.remove(&p))));
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            _ => consumer.assign(list),
        }
    }

    /// What the group has committed, with its notes. Where the broker does not tell, librdkafka asks again for the
    /// position alone: what was acknowledged beyond it comes twice.
    fn committed(&self, consumer: &Native, list: &TopicPartitionList) -> BTreeMap<i32, (i64, String)> {
        let answer = match consumer.committed_offsets(list.clone(), LOOK_TIMEOUT) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(topic = self.topic, %error, "the group's positions are not told");
                return BTreeMap::new();
            }
        };
        let position = |e: &TopicPartitionListElem<'_>| match (e.error(), e.offset()) {
            (Ok(()), Offset::Offset(offset)) => {
                // The metadata is any client's to write, and rdkafka panics where it is not UTF-8.
                let note = catch_unwind(AssertUnwindSafe(|| e.metadata().to_owned())).unwrap_or_default();
                Some((e.partition(), (offset, note)))
            }
            _ => None,
        };
        answer.elements().iter().filter_map(position).collect()
    }

    fn revoke(&self, consumer: &Native, list: &TopicPartitionList) -> KafkaResult<()> {
        let partitions = numbers(list);
        // From here on late answers are stale: nothing is acknowledged that is not committed below.
        let found = self.inbox.revoked(&partitions);
        if !found.due.is_empty() {
            let result = if consumer.assignment_lost() {
                Err(error::of_code(Code::AssignmentLost, "commit"))
            } else {
                self.commit(consumer, &found.due)
            };
            self.inbox.parted(&found.due, &result);
            if let Err(error) = result {
                self.events.emit(EventKind::AnswerFailed, &self.subject, Some(error));
            }
        }
        if found.unanswered > 0 {
            self.events.emit(EventKind::Revoked, &self.subject, None);
        }
        {
            let mut paused = self.paused.lock();
            let list = self.list(partitions.into_iter().filter(|p| paused.remove(p)));
            if list.count() > 0
                && let Err(error) = consumer.resume(&list)
            {
                tracing::warn!(topic = self.topic, %error, "partitions cannot be resumed");
            }
        }
        // In any case: the group waits for it, and so does a close.
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            _ => consumer.unassign(),
        }
    }
}

fn numbers(list: &TopicPartitionList) -> Vec<i32> {
    list.elements().iter().map(|e| e.partition()).collect()
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.served.store(true, Ordering::Relaxed);
        self.watch.log(level, facility, line);
    }

    fn stats_raw(&self, _: &[u8]) {
        self.served.store(true, Ordering::Relaxed);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.served.store(true, Ordering::Relaxed);
        self.watch.error(error, reason);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &Native, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        self.served.store(true, Ordering::Relaxed);
        let result = match what {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => self.assign(consumer, list),
            _ => self.revoke(consumer, list),
        };
        if let Err(error) = result {
            tracing::warn!(topic = self.topic, %error, "a rebalance failed");
        }
    }
}

/// See the module.
pub(crate) struct Poller {
    consumer: Native,
    context: Arc<Context>,
    inbox: Arc<Inbox>,
    commits: bool,
    commit_interval: Duration,
    last_commit: Instant,
    chunk: Vec<Incoming>,
    copies: Copies,
    full_since: Option<Instant>,
    missing_since: Option<Instant>,
    next_look: Instant,
    next_gap: Instant,
    left: bool,
}

impl Poller {
    /// For a consumer that is subscribed (`commits`) or assigned.
    pub(crate) fn new(mut consumer: Native, inbox: Arc<Inbox>, commits: bool, commit_interval: Duration) -> Self {
        let signal = inbox.clone();
        consumer.set_nonempty_callback(move || signal.signal.raise());
        let context = consumer.context().clone();
        let now = Instant::now();
        Self {
            consumer,
            context,
            inbox,
            commits,
            commit_interval,
            last_commit: now,
            chunk: Vec::with_capacity(CHUNK),
            copies: Copies::default(),
            full_since: None,
            missing_since: None,
            next_look: now,
            next_gap: now,
            left: false,
        }
    }

    /// Serves the consumer until it is closed, and leaves the group.
    pub(crate) fn run(mut self) {
        loop {
            let plan = self.inbox.plan();
            if plan.closing {
                break;
            }
            let idle = self.turn(&plan);
            if idle {
                let tick = if plan.flush { FLUSH_TICK } else { TICK };
                self.inbox.signal.wait(tick.min(self.commit_interval));
            }
        }
        self.commit_rest();
        // Revokes everything, and tries once more to commit. It may take until the session ends when the broker is away;
        // whoever closes does not wait longer than they want.
        drop(self.consumer);
        self.inbox.end();
    }

    /// Commits what was acknowledged before the group is left. In the middle of a rebalance the broker refuses it, so it
    /// is tried until the close must end.
    fn commit_rest(&mut self) {
        let deadline = self.inbox.deadline();
        self.pause(true, &BTreeSet::new());
        while self.commits && !self.inbox.due().is_empty() && Instant::now() < deadline {
            self.commit(true);
            // Serves the rebalance; new messages are not taken any more.
            self.pull((0, 0), true);
            if !self.inbox.due().is_empty() {
                self.inbox.signal.wait(FLUSH_TICK);
            }
        }
    }

    /// Polls once around; true when there is nothing left to do.
    fn turn(&mut self, plan: &Plan) -> bool {
        let full = plan.room.0 == 0 || plan.room.1 == 0;
        let waits = match (full, self.full_since) {
            (false, _) => {
                self.full_since = None;
                false
            }
            (true, None) => {
                self.full_since = Some(Instant::now());
                false
            }
            (true, Some(since)) => since.elapsed() > PATIENCE,
        };
        let pause = plan.pause || waits;
        self.pause(pause, &plan.far);
        let idle = if full && !pause { true } else { self.pull(plan.room, pause) };
        if plan.leave && !self.left {
            self.left = true;
            if self.commits {
                // The group goes on without this member; the revoke commits.
                self.consumer.unsubscribe();
            }
        }
        self.commit(plan.flush);
        self.look_for_topic();
        idle
    }

    /// Takes messages as far as there is room; true when there are no more.
    fn pull(&mut self, room: (usize, usize), paused: bool) -> bool {
        // A paused consumer is polled for events; a straggler is taken all the same.
        let (mut count, mut bytes) = if paused { (STRAGGLERS, usize::MAX) } else { room };
        let mut idle = false;
        while count > 0 && bytes > 0 {
            self.context.served.store(false, Ordering::Relaxed);
            match self.consumer.poll(Duration::ZERO) {
                Some(Ok(record)) => {
                    let message = convert::message(&record, &mut self.copies);
                    let size = record.payload_len() + record.key_len();
                    let size = message.as_ref().map_or(size, queue_core::Message::size);
                    count = count.saturating_sub(1);
                    bytes = bytes.saturating_sub(size);
                    self.chunk.push(Incoming {
                        partition: record.partition(),
                        offset: record.offset(),
                        size: u32::try_from(size).unwrap_or(u32::MAX),
                        message,
                    });
                    if self.chunk.len() >= CHUNK {
                        self.hand_over();
                    }
                }
                Some(Err(error)) => self.trouble(&error),
                None if self.context.served.load(Ordering::Relaxed) => {}
                None => {
                    idle = true;
                    break;
                }
            }
        }
        if !self.chunk.is_empty() {
            self.hand_over();
        }
        idle
    }

    /// Gives what was fetched to the inbox, and tells when retention was faster.
    fn hand_over(&mut self) {
        for jump in self.inbox.push(&mut self.chunk) {
            // Compaction and transactions leave gaps too, and that often; the broker tells them apart.
            if self.next_gap > Instant::now() {
                return;
            }
            self.next_gap = Instant::now() + GAP_INTERVAL;
            let topic = &self.context.topic;
            let Ok((low, _)) = self.consumer.fetch_watermarks(topic, jump.partition, LOOK_TIMEOUT) else { continue };
            if low > jump.expected {
                let error = Error::new(ErrorKind::NotFound, "messages were removed before they were read")
                    .with_context("topic", topic)
                    .with_context("partition", jump.partition)
                    .with_context("from", jump.expected)
                    .with_context("to", low);
                self.context.events.emit(EventKind::Expired, &self.context.subject, Some(error));
            }
        }
    }

    /// Pauses and resumes, so that exactly `all` or the `far` partitions are paused.
    fn pause(&self, all: bool, far: &BTreeSet<i32>) {
        let mut paused = self.context.paused.lock();
        if !all && far.is_empty() && paused.is_empty() {
            return;
        }
        let Ok(assignment) = self.consumer.assignment() else { return };
        let wanted: BTreeSet<i32> = numbers(&assignment).into_iter().filter(|p| all || far.contains(p)).collect();
        if *paused == wanted {
            return;
        }
        let stop = self.context.list(wanted.difference(&paused).copied());
        let go = self.context.list(paused.difference(&wanted).copied());
        let mut result = Ok(());
        if stop.count() > 0 {
            result = result.and(self.consumer.pause(&stop));
        }
        if go.count() > 0 {
            result = result.and(self.consumer.resume(&go));
        }
        match result {
            Ok(()) => *paused = wanted,
            Err(error) => tracing::warn!(%error, "partitions cannot be paused"),
        }
    }

    /// Commits what was acknowledged, when it is time or `now`. One that failed is tried again.
    fn commit(&mut self, now: bool) {
        let interval = if now { FLUSH_TICK / 2 } else { self.commit_interval };
        if !self.commits || self.last_commit.elapsed() < interval {
            return;
        }
        let due = self.inbox.due();
        if !due.is_empty() {
            let result = self.context.commit(&self.consumer, &due);
            if let Err(error) = &result {
                tracing::debug!(topic = self.context.topic, %error, "a commit failed and is tried again");
            }
            self.inbox.committed(&due, result);
        }
        self.last_commit = Instant::now();
    }

    fn trouble(&mut self, error: &KafkaError) {
        let Some(code) = error.rdkafka_error_code() else { return };
        let mapped = error::of_code(code, "receive").with_context("topic", &self.context.topic);
        match (error, mapped.kind()) {
            (_, ErrorKind::NotFound) => {
                // A broker that has just come back may not know all topics yet.
                self.missing_since.get_or_insert_with(Instant::now);
            }
            (KafkaError::MessageConsumptionFatal(_), _) | (_, ErrorKind::Unauthorized | ErrorKind::Conflict) => {
                self.inbox.fail(mapped);
            }
            _ => tracing::debug!(error = %mapped, "transient"),
        }
    }

    /// Ends the consumer when its topic stays missing.
    fn look_for_topic(&mut self) {
        let Some(since) = self.missing_since else { return };
        if self.next_look > Instant::now() {
            return;
        }
        self.next_look = Instant::now() + MISSING_FOR / 4;
        let topic = &self.context.topic;
        match self.consumer.fetch_metadata(Some(topic), LOOK_TIMEOUT).and_then(|m| partitions(&m)) {
            Ok(Some(_)) => self.missing_since = None,
            Ok(None) if since.elapsed() >= MISSING_FOR => {
                let error = Error::new(ErrorKind::NotFound, "the topic is gone");
                self.inbox.fail(error.with_operation("receive").with_context("topic", topic));
                self.missing_since = None;
            }
            // Absent brokers say nothing about the topic.
            Ok(None) | Err(_) => {}
        }
    }
}
