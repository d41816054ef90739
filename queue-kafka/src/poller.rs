//! The thread of a consumer: everything that librdkafka wants done between two polls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use queue_core::{Error, ErrorKind, EventKind};
use rdkafka::client::ClientContext as _;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use crate::callbacks::{Context, Native, Told, Verdict};
use crate::chunk::{Chunk, Waiting};
use crate::error::{self, is_login};
use crate::ffi::Reader;
use crate::inbox::{Inbox, Mark, Plan};
use crate::link::partitions;

/// The longest sleep: answers and new messages wake the thread, this serves the rest.
const TICK: Duration = Duration::from_millis(100);
/// The sleep while somebody waits for a commit, which is tried again in this time when it fails.
const FLUSH_TICK: Duration = Duration::from_millis(10);
/// How long a full consumer goes without a poll before its partitions are paused, so that it can poll on.
const PATIENCE: Duration = Duration::from_millis(500);
/// Messages that are taken at a time of a consumer that is paused.
const STRAGGLERS: usize = 64;
/// How long a topic must be missing before the consumer gives up.
const MISSING_FOR: Duration = Duration::from_secs(3);
/// Between two looks for the place where a partition is read, after errors.
const SEEK_INTERVAL: Duration = Duration::from_millis(500);
/// How often offsets that are left out are looked into.
const GAP_INTERVAL: Duration = Duration::from_secs(1);
/// How long the first look at the group's positions may take.
const MIN_LOOK: Duration = Duration::from_millis(250);
/// How long a look at the metadata may take.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Poller {
    reader: Reader<Context>,
    context: Arc<Context>,
    inbox: Arc<Inbox>,
    commits: bool,
    commit_interval: Duration,
    last_commit: Instant,
    /// What the broker was asked to keep and has not answered.
    committing: Option<(Vec<Mark>, Instant)>,
    chunk: Chunk,
    /// Partitions of tiers that wait for their next retry to be due. They are paused, and read from there on then.
    waiting: BTreeMap<i32, Waiting>,
    /// Partitions in which librdkafka may go on at another place than where reading ended: it only ever moves its place
    /// forward when a batch is read, past an error too.
    astray: BTreeSet<i32>,
    next_seek: Instant,
    next_look_at_positions: Instant,
    look_for: Duration,
    full_since: Option<Instant>,
    missing_since: Option<Instant>,
    next_look: Instant,
    next_gap: Instant,
    left: bool,
}

impl Poller {
    /// For a consumer that is subscribed (`commits`) or is to be assigned.
    ///
    /// # Errors
    /// What librdkafka says when it is out of memory.
    pub(crate) fn new(
        consumer: Native,
        inbox: Arc<Inbox>,
        commits: bool,
        commit_interval: Duration,
    ) -> KafkaResult<Self> {
        let context = consumer.context().clone();
        let reader = Reader::new(consumer, context.feed.clone())?;
        let now = Instant::now();
        Ok(Self {
            reader,
            context,
            inbox,
            commits,
            commit_interval,
            last_commit: now,
            committing: None,
            chunk: Chunk::default(),
            waiting: BTreeMap::new(),
            astray: BTreeSet::new(),
            next_seek: now,
            next_look_at_positions: now,
            look_for: MIN_LOOK,
            full_since: None,
            missing_since: None,
            next_look: now,
            next_gap: now,
            left: false,
        })
    }

    /// Reads these partitions, without a group, from these offsets on.
    ///
    /// # Errors
    /// What librdkafka says to the list.
    pub(crate) fn assign(&self, starts: &[(i32, i64)]) -> KafkaResult<()> {
        let partitions: Vec<i32> = starts.iter().map(|(partition, _)| *partition).collect();
        self.context.connect(&partitions);
        self.inbox.assigned(partitions.into_iter().map(|partition| (partition, None)));
        let topic = self.context.topic();
        let list = starts.iter().map(|(p, offset)| ((topic.to_owned(), *p), Offset::Offset(*offset))).collect();
        self.consumer().assign(&TopicPartitionList::from_topic_map(&list)?)
    }

    /// Becomes a member of the group.
    ///
    /// # Errors
    /// What librdkafka says to the topic.
    pub(crate) fn subscribe(&self) -> KafkaResult<()> {
        self.consumer().subscribe(&self.context.lanes.topics())
    }

    fn consumer(&self) -> &Native {
        self.reader.consumer()
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
        drop(self.reader);
        self.inbox.end();
    }

    /// Commits what was acknowledged before the group is left. In the middle of a rebalance the broker refuses it, so it
    /// is tried until the close must end.
    fn commit_rest(&mut self) {
        let deadline = self.inbox.deadline();
        self.pause(true, &BTreeSet::new());
        let inbox = self.inbox.clone();
        let is_left = || !inbox.due().is_empty() || inbox.is_turn();
        while self.commits && is_left() && Instant::now() < deadline {
            let due = inbox.due();
            if !due.is_empty() {
                let result = self.context.commit(self.consumer(), &due);
                inbox.committed(&due, result);
            }
            // Serves the rebalance; new messages are not taken any more.
            self.pull((0, 0), true);
            if inbox.is_turn() {
                self.place();
            }
            if is_left() {
                inbox.signal.wait(FLUSH_TICK);
            }
        }
    }

    /// Polls once around; true when there is nothing left to do.
    fn turn(&mut self, plan: &Plan) -> bool {
        // What is handed out while the broker keeps no positions would come again, and librdkafka has read far ahead.
        let unanswered = |(_, since): &(Vec<Mark>, Instant)| since.elapsed() >= self.commit_interval;
        let overdue = self.committing.as_ref().is_some_and(unanswered);
        let full = plan.room.0 == 0 || plan.room.1 == 0 || overdue;
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
        let due = if full || pause { Vec::new() } else { self.due() };
        self.pause(pause, &plan.far);
        self.go_to(&due, pause, &plan.far);
        let idle = if full && !pause { true } else { self.pull(plan.room, pause) };
        self.hear();
        self.place();
        self.grant();
        if plan.leave && !self.left {
            self.left = true;
            if self.commits {
                // The group goes on without this member; the revoke commits.
                self.consumer().unsubscribe();
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
        self.serve();
        let mut idle = false;
        while count > 0 && bytes > 0 && !idle {
            // Sizes are known when the messages are there: as many as fit if none is larger than those before.
            let fit = self.chunk.fit(bytes);
            let records = self.reader.read(count.min(fit));
            self.chunk.messages.reserve(records.len());
            records.iter().for_each(|record| self.chunk.add(record, &self.context.lanes));
            count -= records.len().min(count);
            bytes = bytes.saturating_sub(self.chunk.bytes);
            idle = records.len() == 0;
            drop(records);
            self.hand_over();
        }
        idle
    }

    /// The partitions whose next retry is due, and where it stands; they wait no longer.
    fn due(&mut self) -> Vec<(i32, i64)> {
        let now = SystemTime::now();
        let due: Vec<_> = self.waiting.iter().filter(|(_, w)| w.due <= now).map(|(p, w)| (*p, w.offset)).collect();
        for (partition, _) in &due {
            self.waiting.remove(partition);
        }
        due
    }

    /// Has the partitions read from these offsets on, and those that are astray from where reading ended.
    fn go_to(&mut self, due: &[(i32, i64)], all: bool, far: &BTreeSet<i32>) {
        let mut places = due.to_vec();
        if self.next_seek <= Instant::now() && !self.astray.is_empty() {
            self.next_seek = Instant::now() + SEEK_INTERVAL;
            let next = |partition: &i32| Some((*partition, self.inbox.next(*partition)?));
            let waits = |p: &i32| self.waiting.contains_key(p) || due.iter().any(|(lane, _)| lane == p);
            places.extend(self.astray.iter().filter(|p| !waits(p)).filter_map(next));
        }
        if places.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::new();
        for (lane, offset) in &places {
            let (topic, partition) = self.context.lanes.place(*lane);
            // The offset is one that was read.
            let _ = list.add_partition_offset(topic, partition, Offset::Offset(*offset));
        }
        let answer = self.consumer().seek_partitions(list, LOOK_TIMEOUT);
        let failed = match &answer {
            Ok(answer) => {
                let failed = answer.elements().into_iter().filter(|e| e.error().is_err());
                failed.map(|e| self.context.lanes.lane(e.topic(), e.partition())).collect()
            }
            Err(error) => {
                tracing::warn!(topic = self.context.topic(), %error, "partitions cannot be read from another place");
                places.iter().map(|(lane, _)| *lane).collect::<Vec<_>>()
            }
        };
        self.astray.retain(|lane| failed.contains(lane) || !places.iter().any(|(place, _)| place == lane));
        for (lane, offset) in due.iter().filter(|(lane, _)| failed.contains(lane)) {
            // What is read of it meanwhile is dropped, since it waits.
            self.waiting.insert(*lane, Waiting { offset: *offset, due: SystemTime::now() + SEEK_INTERVAL });
        }
        if !failed.is_empty() {
            self.pause(all, far);
        }
    }

    /// Serves what is not a message.
    fn serve(&mut self) {
        loop {
            self.context.served.store(false, Ordering::Relaxed);
            let more = self.reader.serve(|record| self.chunk.add(record, &self.context.lanes));
            // Before anything is read of a partition that came back.
            for lane in self.context.revoked.lock().drain(..) {
                self.waiting.remove(&lane);
                self.astray.remove(&lane);
            }
            if !more && !self.context.served.load(Ordering::Relaxed) {
                break;
            }
        }
        self.hand_over();
    }

    /// Gives what was fetched to the inbox, and tells when retention was faster.
    fn hand_over(&mut self) {
        for (error, lane) in std::mem::take(&mut self.chunk.errors) {
            self.trouble(&error, lane);
        }
        self.chunk.bytes = 0;
        self.chunk.sort_out(&mut self.waiting);
        if self.chunk.messages.is_empty() {
            return;
        }
        let pushed = self.inbox.push(std::mem::take(&mut self.chunk.messages));
        self.astray.extend(pushed.rewound);
        for jump in pushed.jumps {
            // Compaction and transactions leave gaps too, and that often; the broker tells them apart.
            if self.next_gap > Instant::now() {
                return;
            }
            self.next_gap = Instant::now() + GAP_INTERVAL;
            let (topic, partition) = self.context.lanes.place(jump.partition);
            let Ok((low, _)) = self.consumer().fetch_watermarks(topic, partition, LOOK_TIMEOUT) else { continue };
            if low > jump.expected {
                let error = Error::new(ErrorKind::NotFound, "messages were removed before they were read")
                    .with_context("topic", topic)
                    .with_context("partition", partition)
                    .with_context("from", jump.expected)
                    .with_context("to", low);
                self.context.events.emit(EventKind::Expired, &self.context.subject, Some(error));
            }
        }
    }

    /// Pauses and resumes, so that exactly `all` partitions are paused, or the `far` ones and those where retries wait.
    fn pause(&self, all: bool, far: &BTreeSet<i32>) {
        let mut paused = self.context.paused.lock();
        if !all && far.is_empty() && self.waiting.is_empty() && paused.is_empty() {
            return;
        }
        let Ok(assignment) = self.consumer().assignment() else { return };
        let wanted = self.context.lanes_of(&assignment).into_iter();
        let wanted = wanted.filter(|p| all || far.contains(p) || self.waiting.contains_key(p));
        let wanted: BTreeSet<i32> = wanted.collect();
        if *paused == wanted {
            return;
        }
        let stop = self.context.list(wanted.difference(&paused).copied());
        let go = self.context.list(paused.difference(&wanted).copied());
        let mut result = Ok(());
        if stop.count() > 0 {
            result = result.and(self.consumer().pause(&stop));
        }
        if go.count() > 0 {
            result = result.and(self.consumer().resume(&go));
        }
        match result {
            Ok(()) => *paused = wanted,
            Err(error) => tracing::warn!(%error, "partitions cannot be paused"),
        }
    }

    /// Commits what was acknowledged, when it is time or `now`. One that failed is tried again.
    fn commit(&mut self, now: bool) {
        let interval = if now { FLUSH_TICK / 2 } else { self.commit_interval };
        if !self.commits || self.committing.is_some() || self.last_commit.elapsed() < interval {
            return;
        }
        self.last_commit = Instant::now();
        let due = self.inbox.due();
        if due.is_empty() {
            return;
        }
        match self.context.positions(&due).and_then(|list| self.reader.commit(&list)) {
            Ok(()) => self.committing = Some((due, Instant::now())),
            Err(error) => self.inbox.committed(&due, Err(error::of(error, "commit"))),
        }
    }

    /// Lets a transaction commit positions. An ordinary commit that is under way might come behind them, so it is waited
    /// for.
    fn grant(&self) {
        if self.committing.is_some() {
            return;
        }
        self.inbox.grant(|marks| {
            let positions = self.context.positions(marks).map_err(|e| error::of(e, "commit"))?;
            let nobody = || Error::new(ErrorKind::LeaseLost, "the receiver is in no group").with_retryable(true);
            let member = self.consumer().group_metadata().ok_or_else(nobody)?;
            // Of a member that was put out and does not know it yet the broker might take positions.
            if self.consumer().assignment_lost() { Err(nobody()) } else { Ok((positions, member)) }
        });
    }

    /// Asks for the positions that are wanted: of partitions that are to be read from there, and of a transaction that may
    /// have been committed. The broker tells neither before the transaction is over.
    fn place(&mut self) {
        let (doubtful, unplaced) = (self.inbox.in_doubt(), self.context.unplaced.lock().clone());
        if doubtful.is_empty() && unplaced.is_empty() || self.next_look_at_positions > Instant::now() {
            return;
        }
        let lanes: BTreeSet<i32> = unplaced.iter().chain(&doubtful).copied().collect();
        let asked = Instant::now();
        let mut told = self.context.committed(self.consumer(), &self.context.list(lanes), self.look_for);
        // Longer each time in vain, since the way to the broker may be long, and not most of this thread's time.
        self.look_for = if told.is_empty() { (self.look_for * 2).min(LOOK_TIMEOUT) } else { MIN_LOOK };
        let pause = SEEK_INTERVAL.max(asked.elapsed() * 4);
        if !doubtful.is_empty() {
            self.inbox.told(&told);
        }
        told.retain(|lane, _| unplaced.contains(lane));
        if !told.is_empty() {
            self.start_at(told);
        }
        self.next_look_at_positions = Instant::now() + pause;
    }

    /// Has partitions read from the group's positions on that were assigned before these were known. What librdkafka read
    /// meanwhile was dropped.
    fn start_at(&mut self, told: BTreeMap<i32, Told>) {
        let mut list = TopicPartitionList::new();
        for (lane, at) in &told {
            let (topic, partition) = self.context.lanes.place(*lane);
            let offset = at.as_ref().map_or(Offset::Beginning, |(offset, _)| Offset::Offset(*offset));
            // The offset is one that was committed.
            let _ = list.add_partition_offset(topic, partition, offset);
        }
        // librdkafka refuses until reading has begun somewhere.
        let Ok(answer) = self.consumer().seek_partitions(list, LOOK_TIMEOUT) else { return };
        for element in answer.elements().into_iter().filter(|element| element.error().is_ok()) {
            let lane = self.context.lanes.lane(element.topic(), element.partition());
            let Some(at) = told.get(&lane) else { continue };
            self.context.unplaced.lock().remove(&lane);
            self.waiting.remove(&lane);
            self.astray.remove(&lane);
            self.inbox.assigned(std::iter::once((lane, at.clone())));
        }
    }

    /// Hears what came of the last commit.
    fn hear(&mut self) {
        let Some(answer) = self.reader.committed() else { return };
        let Some((marks, _)) = self.committing.take() else { return };
        // One that is to be sent without notes is still due.
        let Verdict::Final(result) = self.context.judge(answer) else { return };
        if let Err(error) = &result {
            tracing::debug!(topic = self.context.topic(), %error, "a commit failed and is tried again");
        }
        self.inbox.committed(&marks, result);
    }

    fn trouble(&mut self, error: &KafkaError, lane: Option<i32>) {
        let Some(code) = error.rdkafka_error_code() else { return };
        // Of these two librdkafka skips the record by intention.
        self.astray.extend(lane.filter(|_| !matches!(code, Code::BadMessage | Code::NotImplemented)));
        let mapped = error::of_code(code, "receive").with_context("topic", self.context.topic());
        match (error, mapped.kind()) {
            (_, ErrorKind::NotFound) => {
                // A broker that has just come back may not know all topics yet.
                self.missing_since.get_or_insert_with(Instant::now);
            }
            // The next token may be taken; until then health tells.
            (_, ErrorKind::Unauthorized) if is_login(code) && self.context.watch.renews_login() => {}
            // Its own topic is read all the same.
            (KafkaError::MessageConsumption(_), ErrorKind::Unauthorized)
                if lane.is_some_and(|lane| self.context.lanes.delay(lane).is_some()) =>
            {
                tracing::warn!(error = %mapped, "retries that wait in a topic cannot be read");
            }
            (KafkaError::MessageConsumptionFatal(_), _) | (_, ErrorKind::Unauthorized | ErrorKind::Conflict) => {
                self.inbox.fail(mapped);
            }
            // In the measure of librdkafka's own log.
            _ => self.context.watch.log(RDKafkaLogLevel::Warning, "CONSUME", &mapped.to_string()),
        }
    }

    /// Ends the consumer when its topic stays missing.
    fn look_for_topic(&mut self) {
        if self.context.doubted.swap(false, Ordering::Relaxed) {
            self.missing_since.get_or_insert_with(Instant::now);
        }
        let Some(since) = self.missing_since else { return };
        if self.next_look > Instant::now() {
            return;
        }
        self.next_look = Instant::now() + MISSING_FOR / 4;
        let topic = self.context.topic();
        match self.consumer().fetch_metadata(Some(topic), LOOK_TIMEOUT).and_then(|m| partitions(&m)) {
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
