//! The connection as a whole: the questions to the cluster, and the thread that serves their client.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, EventKind, Result};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::auth::Login;
use crate::error;
use crate::monitor::{Monitor, Watch};

/// How long the first question to a cluster may take before it is asked again; then twice as long.
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// How long the cluster may take to show that it is there.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the client's events are served, and an absent cluster is asked again.
const TICK: Duration = Duration::from_millis(250);
/// Between two questions to a leader that does not know that it leads.
const AGAIN: Duration = Duration::from_millis(50);
/// A topic of every cluster, so that the answer to a probe is small.
const PROBE_TOPIC: &str = "__consumer_offsets";

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

/// The context of a client that asks a question and goes: nobody serves it, so it is given its token first.
struct Asker {
    watch: Watch,
    has_token: AtomicBool,
}

impl Asker {
    fn waits(&self) -> bool {
        self.watch.renews_login() && !self.has_token.load(Ordering::Acquire)
    }
}

impl ClientContext for Asker {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.has_token.store(true, Ordering::Release);
        self.watch.generate_oauth_token(config)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.watch.log(level, facility, line);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.error(error, reason);
    }
}

impl ConsumerContext for Asker {}

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
        // What is at the other end may hang up because it speaks something else, which is told in this way only.
        let mut config = config.clone();
        config.set("log.connection.close", "true");
        let client: Client = config.create_with_context(Watch(monitor.clone())).map_err(|e| error::of_config(&e))?;
        let client = Arc::new(client);
        let link = Self { client: Some(client.clone()), monitor: monitor.clone(), timeout };
        std::thread::Builder::new().name("anyqueue-kafka".to_owned()).spawn(move || serve(&client, &monitor)).map_err(
            |e| Error::new(ErrorKind::Internal, "cannot start a thread").with_operation("connect").with_source(e),
        )?;
        let monitor = link.monitor.clone();
        let asked = link.ask("connect", connect_timeout, move |client, within| first_probe(client, within, &monitor));
        let answer = tokio::select! {
            answer = asked => answer,
            refused = link.monitor.refusal() => Err(refused),
        };
        answer.map_err(|e| link.monitor.unreachable(e))?;
        link.monitor.connected.store(true, Ordering::Release);
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
            Ok(Ok(answer)) => answer.map_err(|e| self.monitor.instead_of(error::of(e, operation))),
            Ok(Err(_)) => Err(Error::new(ErrorKind::Internal, "the question was given up").with_operation(operation)),
            Err(_) => Err(self.monitor.instead_of(late())),
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
        let asker = Asker { watch: Watch(self.monitor.clone()), has_token: AtomicBool::new(false) };
        self.ask("stats", self.timeout, move |_, within| {
            // A member of no generation: it asks, and joins nothing.
            let client: BaseConsumer<Asker> = group.create_with_context(asker)?;
            let deadline = Instant::now() + within;
            while client.context().waits() && Instant::now() < deadline {
                drop(client.poll(AGAIN));
            }
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
        if let Login::Tokens(tokens) = &self.monitor.login {
            tokens.stop();
        }
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

/// The same until there is an answer, the time is over, or all brokers refuse.
fn first_probe(client: &Client, within: Duration, monitor: &Monitor) -> Result<(), KafkaError> {
    let deadline = Instant::now() + within;
    let mut patience = FIRST_PROBE;
    loop {
        let (asked, left) = (Instant::now(), deadline.saturating_duration_since(Instant::now()));
        let answer = probe(client, patience.min(left));
        let given_up = monitor.is_hopeless() || monitor.stopped.load(Ordering::Acquire);
        if answer.is_ok() || given_up || deadline <= Instant::now() {
            return answer;
        }
        if asked.elapsed() < patience {
            // A connection failed meanwhile.
            std::thread::sleep(AGAIN);
        } else {
            patience *= 2;
        }
    }
}

fn serve(client: &Client, monitor: &Monitor) {
    while !monitor.stopped.load(Ordering::Acquire) {
        // Serves logs, errors and questions for a token: one with each poll.
        while monitor.served.swap(false, Ordering::AcqRel) | client.poll(Duration::ZERO).is_some() {}
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
