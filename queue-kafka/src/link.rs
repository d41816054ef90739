//! The connection as a whole: whether the cluster answers, what it says about topics, and the client's own log.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use queue_core::{Error, ErrorKind, EventKind, Events, Health, HealthState, Result};
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::error;

/// How long the cluster may take to show that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the client's events are served, and an absent cluster is asked again.
const TICK: Duration = Duration::from_millis(250);
/// Between two questions to a leader that does not know that it leads.
const AGAIN: Duration = Duration::from_millis(50);
/// A topic of every cluster, so that the answer to a probe is small.
const PROBE_TOPIC: &str = "__consumer_offsets";
/// Lines of librdkafka's log that pass in a time.
const LOG_LINES: u32 = 20;
const LOG_TIME: Duration = Duration::from_secs(10);

/// Wakes a thread that waits.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn raise(&self) {
        *self.raised.lock() = true;
        self.changed.notify_one();
    }

    /// Waits until it is raised or the time is over, and lowers it.
    pub(crate) fn wait(&self, within: Duration) {
        let mut raised = self.raised.lock();
        if !*raised {
            self.changed.wait_for(&mut raised, within);
        }
        *raised = false;
    }
}

/// Drops what may take its time to go, on a thread of its own.
pub(crate) fn retire<T: Send + 'static>(what: T) {
    let slot = Arc::new(Mutex::new(Some(what)));
    let theirs = slot.clone();
    let spawned = std::thread::Builder::new().name("anyqueue-kafka-retire".to_owned()).spawn(move || {
        drop(theirs.lock().take());
    });
    if spawned.is_err() {
        // Without a thread it goes here, late but whole.
        drop(slot.lock().take());
    }
}

/// What all clients of a connection report to.
#[derive(Debug)]
pub(crate) struct Monitor {
    hosts: Arc<str>,
    events: Events,
    suspected: AtomicBool,
    stopped: AtomicBool,
    down: Mutex<Option<Error>>,
    refused: Mutex<Option<Error>>,
    log: Mutex<LogGate>,
    wake: Signal,
}

#[derive(Debug)]
struct LogGate {
    since: Instant,
    lines: u32,
    held_back: u32,
}

impl Monitor {
    pub(crate) fn new(hosts: &str, events: Events) -> Arc<Self> {
        Arc::new(Self {
            hosts: hosts.into(),
            events,
            suspected: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            down: Mutex::new(None),
            refused: Mutex::new(None),
            log: Mutex::new(LogGate { since: Instant::now(), lines: 0, held_back: 0 }),
            wake: Signal::default(),
        })
    }

    /// A client saw something that may mean that the cluster is away: it is asked soon.
    pub(crate) fn suspect(&self) {
        if !self.suspected.swap(true, Ordering::AcqRel) {
            self.wake.raise();
        }
    }

    /// What the cluster said, or did not say, to a question.
    fn heard(&self, answer: Result<(), Error>) {
        let mut down = self.down.lock();
        match answer {
            Ok(()) => {
                *self.refused.lock() = None;
                if down.take().is_some() {
                    self.events.emit(EventKind::Connected, &self.hosts, None);
                }
            }
            Err(error) => {
                let first = down.is_none();
                *down = Some(error.clone());
                if first {
                    self.events.emit(EventKind::Disconnected, &self.hosts, Some(error));
                }
            }
        }
    }

    pub(crate) fn health(&self) -> Health {
        match &*self.down.lock() {
            Some(error) => Health::up()
                .with_problem(HealthState::Down, format!("Kafka at {} does not answer: {error}", self.hosts)),
            None => Health::up(),
        }
    }

    fn report(&self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            Some(code @ (Code::Authentication | Code::SaslAuthenticationFailed)) => {
                *self.refused.lock() = Some(error::of_code(code, "connect"));
                self.suspect();
            }
            Some(
                Code::AllBrokersDown
                | Code::BrokerTransportFailure
                | Code::Resolve
                | Code::OperationTimedOut
                | Code::RequestTimedOut,
            ) => self.suspect(),
            _ => {}
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let held_back = {
            let mut gate = self.log.lock();
            if gate.since.elapsed() > LOG_TIME {
                *gate = LogGate { since: Instant::now(), lines: 0, held_back: gate.held_back };
            }
            gate.lines += 1;
            if gate.lines > LOG_LINES && !matches!(level, RDKafkaLogLevel::Debug) {
                gate.held_back += 1;
                return;
            }
            std::mem::take(&mut gate.held_back)
        };
        if held_back > 0 {
            tracing::warn!(target: "librdkafka", held_back, "more lines of the log than are shown");
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::error!(target: "librdkafka", facility, "{line}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{line}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", facility, "{line}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{line}"),
        }
    }
}

/// The context of every client: passes logs and errors on to the monitor.
#[derive(Debug, Clone)]
pub(crate) struct Watch(pub(crate) Arc<Monitor>);

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.log(level, facility, line);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, _: &str) {
        self.0.report(&error);
    }
}

impl ConsumerContext for Watch {}

/// A partition, as the cluster describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partition {
    pub(crate) id: i32,
    pub(crate) has_leader: bool,
    pub(crate) replicas: usize,
}

type Client = BaseConsumer<Watch>;

/// A client for questions, and the thread that serves it.
pub(crate) struct Link {
    client: Option<Arc<Client>>,
    monitor: Arc<Monitor>,
    timeout: Duration,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("hosts", &self.monitor.hosts).finish_non_exhaustive()
    }
}

impl Link {
    /// Connects: the cluster must answer within `connect_timeout`.
    pub(crate) async fn open(
        config: &ClientConfig,
        monitor: Arc<Monitor>,
        connect_timeout: Duration,
        timeout: Duration,
    ) -> Result<Self> {
        let client: Client = config.create_with_context(Watch(monitor.clone())).map_err(|e| error::of_config(&e))?;
        let client = Arc::new(client);
        let link = Self { client: Some(client.clone()), monitor: monitor.clone(), timeout };
        std::thread::Builder::new().name("anyqueue-kafka".to_owned()).spawn(move || serve(&client, &monitor)).map_err(
            |e| Error::new(ErrorKind::Internal, "cannot start a thread").with_operation("connect").with_source(e),
        )?;
        link.ask("connect", connect_timeout, probe).await.map_err(|e| {
            let monitor = &link.monitor;
            match monitor.refused.lock().take() {
                Some(refused) => refused.with_context("hosts", &monitor.hosts),
                None => Error::new(ErrorKind::Connection, "no broker answers")
                    .with_operation("connect")
                    .with_context("hosts", &monitor.hosts)
                    .with_source(e),
            }
        })?;
        link.monitor.events.emit(EventKind::Connected, &link.monitor.hosts, None);
        Ok(link)
    }

    pub(crate) fn monitor(&self) -> &Arc<Monitor> {
        &self.monitor
    }

    /// Runs a question on a thread that may block. Bounded by `within`, which the question gets, and a little more.
    async fn ask<T: Send + 'static>(
        &self,
        operation: &'static str,
        within: Duration,
        question: impl FnOnce(&Client, Duration) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T> {
        let Some(client) = self.client.clone() else { return Err(Error::closed("broker")) };
        let task = tokio::task::spawn_blocking(move || {
            let answer = question(&client, within);
            // The last reference must not go on a thread of the runtime.
            retire_if_last(client);
            answer
        });
        let late = || Error::new(ErrorKind::Timeout, "the broker did not answer in time").with_operation(operation);
        match tokio::time::timeout(within + Duration::from_secs(1), task).await {
            Ok(Ok(answer)) => answer.map_err(|e| error::of(e, operation)),
            Ok(Err(_)) => Err(Error::new(ErrorKind::Internal, "the question was given up").with_operation(operation)),
            Err(_) => Err(late()),
        }
    }

    /// Asks the cluster for any answer, and takes note of it.
    pub(crate) async fn ping(&self) -> Result<()> {
        let answer = self.ask("ping", self.timeout.min(PROBE_TIMEOUT), probe).await;
        self.monitor.heard(answer.clone());
        answer
    }

    /// The partitions of a topic; `None` where there is no such topic.
    pub(crate) async fn topic(&self, name: &str, operation: &'static str) -> Result<Option<Vec<Partition>>> {
        let name = name.to_owned();
        self.ask(operation, self.timeout, move |client, within| {
            client.fetch_metadata(Some(&name), within).and_then(|m| partitions(&m))
        })
        .await
    }

    /// The partitions of a topic; `NotFound` where there is no such topic.
    pub(crate) async fn existing(&self, name: &str, operation: &'static str) -> Result<Vec<Partition>> {
        self.topic(name, operation).await?.ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "there is no such topic")
                .with_operation(operation)
                .with_context("topic", name)
        })
    }

    /// The offset of each partition that stands for `at`: a time in milliseconds, or [`Offset::End`] or
    /// [`Offset::Beginning`].
    pub(crate) async fn offsets(&self, topic: &str, partitions: &[i32], at: Offset) -> Result<Vec<(i32, i64)>> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition_offset(topic, *partition, at).map_err(|e| error::of(e, "receive"))?;
        }
        let deadline = Instant::now() + self.timeout;
        loop {
            let list = list.clone();
            let answer = self.ask("receive", self.timeout, move |client, within| {
                client.offsets_for_times(list, within).and_then(|list| positions(&list))
            });
            match answer.await {
                // The leader of a topic that was just made may not know yet that it leads.
                Err(error) if error.kind() == ErrorKind::Connection && Instant::now() < deadline => {
                    tokio::time::sleep(AGAIN).await;
                }
                other => return other,
            }
        }
    }

    /// What the group has committed in each partition; a negative number where it has nothing.
    pub(crate) async fn committed(
        &self,
        group: ClientConfig,
        topic: &str,
        partitions: &[i32],
    ) -> Result<Vec<(i32, i64)>> {
        let topic = topic.to_owned();
        let partitions = partitions.to_vec();
        let watch = Watch(self.monitor.clone());
        self.ask("stats", self.timeout, move |_, within| {
            // A member of no generation: it asks, and joins nothing.
            let client: Client = group.create_with_context(watch)?;
            let mut list = TopicPartitionList::new();
            for partition in partitions {
                list.add_partition(&topic, partition);
            }
            let deadline = Instant::now() + within;
            let answer = loop {
                let left = deadline.saturating_duration_since(Instant::now());
                match client.committed_offsets(list.clone(), left) {
                    Err(error) if is_moving(&error) && left > AGAIN => std::thread::sleep(AGAIN),
                    answer => break answer,
                }
            };
            retire(client);
            positions(&answer?)
        })
        .await
    }

    /// Ends the thread. Later questions are answered `Closed` by whoever owns this.
    pub(crate) fn stop(&self) {
        self.monitor.stopped.store(true, Ordering::Release);
        self.monitor.wake.raise();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop();
        if let Some(client) = self.client.take() {
            retire_if_last(client);
        }
    }
}

/// Whether the broker that keeps a group's positions is only just being found, or reads them.
fn is_moving(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress))
}

fn retire_if_last(client: Arc<Client>) {
    if let Some(client) = Arc::into_inner(client) {
        retire(client);
    }
}

/// Partitions and their offsets; a negative number where there is none.
fn positions(list: &TopicPartitionList) -> Result<Vec<(i32, i64)>, KafkaError> {
    let position =
        |e: &TopicPartitionListElem<'_>| e.error().map(|()| (e.partition(), e.offset().to_raw().unwrap_or(-1)));
    list.elements().iter().map(position).collect()
}

fn probe(client: &Client, within: Duration) -> Result<(), KafkaError> {
    client.fetch_metadata(Some(PROBE_TOPIC), within).map(drop)
}

fn serve(client: &Client, monitor: &Monitor) {
    while !monitor.stopped.load(Ordering::Acquire) {
        // Serves logs and errors.
        drop(client.poll(Duration::ZERO));
        let away = monitor.down.lock().is_some();
        if monitor.suspected.swap(false, Ordering::AcqRel) || away {
            let answer = probe(client, PROBE_TIMEOUT).map_err(|e| error::of(e, "probe"));
            if monitor.stopped.load(Ordering::Acquire) {
                break;
            }
            monitor.heard(answer);
        }
        monitor.wake.wait(TICK);
    }
}

/// The partitions of the one topic that was asked for.
pub(crate) fn partitions(metadata: &Metadata) -> Result<Option<Vec<Partition>>, KafkaError> {
    let Some(topic) = metadata.topics().first() else { return Ok(None) };
    match topic.error() {
        None => {}
        Some(
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART | RDKafkaRespErr::RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC,
        ) => return Ok(None),
        // Elections are under way; the partitions tell.
        Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE) => {}
        Some(other) => return Err(KafkaError::MetadataFetch(other.into())),
    }
    let partition = |p: &rdkafka::metadata::MetadataPartition| Partition {
        id: p.id(),
        has_leader: p.leader() >= 0,
        replicas: p.replicas().len(),
    };
    Ok(Some(topic.partitions().iter().map(partition).collect()))
}
