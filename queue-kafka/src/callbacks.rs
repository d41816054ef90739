//! What librdkafka calls on the consumer's thread: rebalances, errors, its log. And what is committed by it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, EventKind, Events};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use crate::error;
use crate::ffi::{self, Feed};
use crate::inbox::{Inbox, Mark};
use crate::lanes::Lanes;
use crate::monitor::Watch;

/// Where librdkafka's log has errors that no callback takes.
const ERROR_FACILITY: &str = "ERROR";
/// How long a look at the group's positions may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// The same, of one partition of several.
const SHORT_LOOK: Duration = Duration::from_millis(200);

/// How long partitions that go wait for a transaction that is just being committed.
const TURN_PATIENCE: Duration = Duration::from_secs(3);
const TURN_TICK: Duration = Duration::from_millis(10);

/// A group's position in a partition with its note; `None` where it has none.
pub(crate) type Told = Option<(i64, String)>;

/// Called by librdkafka from within a poll, on the consumer's thread.
pub(crate) struct Context {
    pub(crate) watch: Watch,
    inbox: Arc<Inbox>,
    /// What every partition feeds.
    pub(crate) feed: Arc<Feed>,
    /// The topics, and what partitions are called in the inbox.
    pub(crate) lanes: Lanes,
    pub(crate) subject: Arc<str>,
    pub(crate) events: Events,
    /// Whether a poll that returned nothing did something all the same.
    pub(crate) served: AtomicBool,
    /// librdkafka spoke of an error. It tells of a topic that is gone on the partitions' queues, from which a batch is
    /// read without it: nothing but its log has it.
    pub(crate) doubted: AtomicBool,
    pub(crate) paused: Mutex<BTreeSet<i32>>,
    /// Partitions that went since the thread last looked.
    pub(crate) revoked: Mutex<Vec<i32>>,
    /// Partitions of which it is not known yet where they are to be read from.
    pub(crate) unplaced: Mutex<BTreeSet<i32>>,
    /// Where partitions start when they are first assigned; others start at the group's position.
    starts: Mutex<Vec<(i32, i64)>>,
}

pub(crate) type Native = BaseConsumer<Context>;

impl Context {
    pub(crate) fn new(
        watch: Watch,
        inbox: Arc<Inbox>,
        lanes: Lanes,
        subject: &str,
        events: Events,
        starts: Vec<(i32, i64)>,
    ) -> Self {
        let signal = inbox.clone();
        Self {
            watch,
            inbox,
            feed: Feed::new(move || signal.signal.raise()),
            lanes,
            subject: subject.into(),
            events,
            served: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            paused: Mutex::default(),
            revoked: Mutex::default(),
            unplaced: Mutex::default(),
            starts: Mutex::new(starts),
        }
    }

    pub(crate) fn topic(&self) -> &str {
        self.lanes.topic()
    }

    /// To be called before the partitions are assigned.
    pub(crate) fn connect(&self, lanes: &[i32]) {
        for lane in lanes {
            let (topic, partition) = self.lanes.place(*lane);
            self.feed.connect(topic, partition);
        }
    }

    pub(crate) fn list(&self, lanes: impl IntoIterator<Item = i32>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for lane in lanes {
            let (topic, partition) = self.lanes.place(lane);
            list.add_partition(topic, partition);
        }
        list
    }

    pub(crate) fn lanes_of(&self, list: &TopicPartitionList) -> Vec<i32> {
        list.elements().iter().map(|e| self.lanes.lane(e.topic(), e.partition())).collect()
    }

    /// Commits and waits for the broker's answer, for what must not go on before. While brokers are away this takes up
    /// to the session's timeout.
    pub(crate) fn commit(&self, consumer: &Native, marks: &[Mark]) -> Result<(), Error> {
        let result = self.positions(marks).and_then(|list| consumer.commit(&list, CommitMode::Sync));
        match self.judge(result) {
            Verdict::Again => self.commit(consumer, marks),
            Verdict::Final(result) => result,
        }
    }

    /// What is to be done about the answer to a commit.
    pub(crate) fn judge(&self, answer: KafkaResult<()>) -> Verdict {
        match answer {
            Err(error)
                if error.rdkafka_error_code() == Some(Code::OffsetMetadataTooLarge) && self.inbox.refuse_notes() =>
            {
                tracing::warn!(
                    topic = self.topic(),
                    "the broker takes no notes of this length: done ones may come again"
                );
                Verdict::Again
            }
            other => Verdict::Final(other.map_err(|e| error::of(e, "commit"))),
        }
    }

    pub(crate) fn positions(&self, marks: &[Mark]) -> KafkaResult<TopicPartitionList> {
        let notes = self.inbox.takes_notes();
        let mut list = TopicPartitionList::with_capacity(marks.len());
        for mark in marks {
            let (topic, partition) = self.lanes.place(mark.partition);
            list.add_partition_offset(topic, partition, Offset::Offset(mark.offset))?;
            let note = if notes { &mark.note } else { &mark.must };
            if !note.is_empty()
                && let Some(mut element) = list.find_partition(topic, partition)
            {
                element.set_metadata(note);
            }
        }
        Ok(list)
    }

    fn assign(&self, consumer: &Native, list: &mut TopicPartitionList) -> KafkaResult<()> {
        let partitions = self.lanes_of(list);
        self.connect(&partitions);
        let mut told = self.committed(consumer, list, LOOK_TIMEOUT);
        if told.is_empty() && list.count() > 1 {
            // Of several together nothing is told while a transaction is open in one.
            let end = Instant::now() + LOOK_TIMEOUT;
            for lane in &partitions {
                if Instant::now() < end {
                    told.extend(self.committed(consumer, &self.list([*lane]), SHORT_LOOK));
                }
            }
        }
        for (partition, offset) in self.starts.lock().extract_if(.., |(p, _)| partitions.contains(p)) {
            told.insert(partition, Some((offset, String::new())));
        }
        for (lane, at) in &told {
            let (topic, partition) = self.lanes.place(*lane);
            if let Some((offset, _)) = at {
                // It is in the list.
                let _ = list.set_partition_offset(topic, partition, Offset::Offset(*offset));
            }
        }
        let untold: Vec<i32> = partitions.into_iter().filter(|lane| !told.contains_key(lane)).collect();
        if !untold.is_empty() {
            tracing::warn!(topic = self.topic(), partitions = ?untold, "the group's positions are not told yet");
        }
        for lane in &untold {
            let (topic, partition) = self.lanes.place(*lane);
            // Where what is taken of them begins is set when it is told. Left to librdkafka they could not be set anywhere
            // before it has the position itself, for which it asks once: no answer, and the partition stands still.
            let _ = list.set_partition_offset(topic, partition, Offset::End);
        }
        // Nothing is taken of those until their place is known: without the note what is done would come again.
        self.unplaced.lock().extend(untold);
        self.inbox.assigned(told.into_iter());
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_assign(list),
            _ => consumer.assign(list),
        }
    }

    /// What the group has committed, with its notes, where the broker tells it: not while a transaction that is to commit
    /// it is not over.
    pub(crate) fn committed(
        &self,
        consumer: &Native,
        list: &TopicPartitionList,
        within: Duration,
    ) -> BTreeMap<i32, Told> {
        let answer = match consumer.committed_offsets(list.clone(), within) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(topic = self.topic(), %error, "the group's positions are not told");
                return BTreeMap::new();
            }
        };
        let told = |at: ffi::Committed| {
            (self.lanes.lane(&at.topic, at.partition), at.offset.map(|offset| (offset, at.metadata)))
        };
        ffi::committed(&answer).into_iter().map(told).collect()
    }

    fn revoke(&self, consumer: &Native, list: &TopicPartitionList) -> KafkaResult<()> {
        let partitions = self.lanes_of(list);
        self.revoked.lock().extend(&partitions);
        self.unplaced.lock().retain(|lane| !partitions.contains(lane));
        // A transaction that is just being committed is waited for: what it acknowledges is still this member's.
        let end = Instant::now() + TURN_PATIENCE;
        while !consumer.assignment_lost() && self.inbox.is_turn_of(&partitions) && Instant::now() < end {
            self.inbox.signal.wait(TURN_TICK);
        }
        // From here on late answers are stale: nothing is acknowledged that is not committed below.
        let found = self.inbox.revoked(&partitions);
        if !found.due.is_empty() {
            let result = if consumer.assignment_lost() {
                let why =
                    "the group gave the partitions away before what was answered could be committed: that comes again";
                Err(Error::new(ErrorKind::LeaseLost, why).with_operation("commit"))
            } else {
                self.commit(consumer, &found.due)
            };
            self.inbox.parted(&found.due, &result);
            if let Err(error) = result {
                self.events.emit(EventKind::AnswerFailed, &self.subject, Some(error));
            }
        }
        if found.withheld.is_some() {
            self.events.emit(EventKind::AnswerFailed, &self.subject, found.withheld);
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
                tracing::warn!(topic = self.topic(), %error, "partitions cannot be resumed");
            }
        }
        // In any case: the group waits for it, and so does a close.
        match consumer.rebalance_protocol() {
            RebalanceProtocol::Cooperative => consumer.incremental_unassign(list),
            _ => consumer.unassign(),
        }
    }
}

/// What comes of a commit.
pub(crate) enum Verdict {
    /// It is to be sent once more, without notes.
    Again,
    Final(Result<(), Error>),
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.served.store(true, Ordering::Relaxed);
        self.watch.generate_oauth_token(config)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.served.store(true, Ordering::Relaxed);
        self.doubted.fetch_or(facility == ERROR_FACILITY, Ordering::Relaxed);
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
            tracing::warn!(topic = self.topic(), %error, "a rebalance failed");
        }
    }
}
