//! Sending.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::RwLock;
use queue_core::{Capabilities, CloseReport, Completion, Error, ErrorKind, Message, Producer, Receipt, Result};
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use tokio::time::{Instant, timeout_at};

use crate::admin::topic_of;
use crate::config::Settings;
use crate::convert;
use crate::error;
use crate::flights::{Flights, MAX_BATCH, Share};
use crate::link::{Monitor, Watch, retire};

/// How long a look for a topic may take that was gone.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// What a native producer reports to.
struct Reports {
    watch: Watch,
    flights: Arc<Flights>,
    gone: Arc<AtomicBool>,
}

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.watch.log(level, facility, line);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.watch.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, word: usize) {
        let verdict = match result {
            Ok(record) => Ok(match (u32::try_from(record.partition()), u64::try_from(record.offset())) {
                (Ok(partition), Ok(offset)) => Receipt::at(partition, offset),
                _ => Receipt::accepted(),
            }),
            Err((error, _)) => Err(match error.rdkafka_error_code() {
                Some(code) => {
                    let error = error::of_delivery(code);
                    self.gone.fetch_or(error.kind() == ErrorKind::NotFound, Ordering::Relaxed);
                    error
                }
                None => error::of_delivery(Code::Unknown),
            }),
        };
        self.flights.landed(word, verdict);
    }
}

/// A native producer and what it has in flight.
struct Native {
    producer: ThreadedProducer<Reports>,
    flights: Arc<Flights>,
    /// Messages were refused because their topic was gone.
    gone: Arc<AtomicBool>,
}

/// A native producer for one deadline, made anew when a fatal error ends it. Shared by the producers of a broker.
pub(crate) struct Engine {
    settings: Settings,
    monitor: Arc<Monitor>,
    deadline: Duration,
    native: RwLock<Option<Arc<Native>>>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Engine {
    pub(crate) fn new(settings: &Settings, monitor: &Arc<Monitor>, deadline: Duration) -> Result<Self> {
        let native = Native::new(settings, monitor, deadline)?;
        Ok(Self {
            settings: settings.clone(),
            monitor: monitor.clone(),
            deadline,
            native: RwLock::new(Some(Arc::new(native))),
        })
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    fn native(&self) -> Option<Arc<Native>> {
        self.native.read().clone()
    }

    /// Replaces a native producer that a fatal error has ended.
    fn replace(&self, ended: &Arc<Native>) -> Result<Arc<Native>> {
        let mut native = self.native.write();
        match &*native {
            Some(present) if !Arc::ptr_eq(present, ended) => return Ok(present.clone()),
            Some(_) => {}
            None => return Err(Error::closed("broker")),
        }
        tracing::warn!("the producer met a fatal error and is made anew");
        let made = Arc::new(Native::new(&self.settings, &self.monitor, self.deadline)?);
        if let Some(old) = native.replace(made.clone()) {
            retire(old);
        }
        Ok(made)
    }

    /// Makes sure that a topic that exists is not taken for gone any more: librdkafka itself notices after a moment.
    pub(crate) async fn find(&self, topic: &str) {
        if let Some(native) = self.native().filter(|native| native.gone.load(Ordering::Relaxed)) {
            let topic = topic.to_owned();
            // Where it fails, so do the messages, and with a reason.
            let _ = tokio::task::spawn_blocking(move || native.look(&topic)).await;
        }
    }

    /// Ends the native producer; what it has in flight is answered `Unknown`.
    pub(crate) fn close(&self) {
        if let Some(native) = self.native.write().take() {
            retire(native);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

impl Native {
    fn new(settings: &Settings, monitor: &Arc<Monitor>, deadline: Duration) -> Result<Self> {
        let flights = Arc::new(Flights::default());
        let gone = Arc::<AtomicBool>::default();
        let reports = Reports { watch: Watch(monitor.clone()), flights: flights.clone(), gone: gone.clone() };
        let producer = ThreadedProducer::from_config_and_context(&settings.producer(deadline), reports)
            .map_err(|e| error::of_config(&e))?;
        Ok(Self { producer, flights, gone })
    }

    /// Asks the cluster for a topic, by which librdkafka learns of it.
    fn look(self: Arc<Self>, topic: &str) {
        if let Err(error) = self.producer.client().fetch_metadata(Some(topic), LOOK_TIMEOUT) {
            tracing::debug!(topic, %error, "a topic cannot be looked for");
        }
        retire(self);
    }
}

/// Sends to one topic.
pub(crate) struct KafkaProducer {
    topic: Arc<str>,
    engine: Arc<Engine>,
    share: Arc<Share>,
    closed: AtomicBool,
    capabilities: Arc<Capabilities>,
}

impl fmt::Debug for KafkaProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaProducer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl KafkaProducer {
    pub(crate) fn new(topic: &str, engine: Arc<Engine>, capabilities: Arc<Capabilities>) -> Self {
        Self { topic: topic.into(), engine, share: Arc::default(), closed: AtomicBool::new(false), capabilities }
    }

    /// Gives one message to librdkafka, which copies it.
    fn enqueue(
        &self,
        native: &Native,
        message: &Message,
        word: usize,
        now: i64,
    ) -> std::result::Result<(), (Error, bool)> {
        let topic = match message.destination() {
            None => &*self.topic,
            Some(address) => topic_of(address).map_err(|e| (e.with_operation("send"), false))?,
        };
        let mut record = BaseRecord::with_opaque_to(topic, word)
            .timestamp(message.get_timestamp().and_then(convert::millis).unwrap_or(now));
        if !message.is_tombstone() {
            record = record.payload(message.payload().as_ref());
        }
        if let Some(key) = message.get_key() {
            record = record.key(key.as_ref());
        }
        record.headers = convert::headers(message);
        native.producer.send(record).map_err(|(error, _)| {
            let fatal = error.rdkafka_error_code() == Some(Code::Fatal);
            if error.rdkafka_error_code() == Some(Code::UnknownTopic) {
                native.gone.store(true, Ordering::Relaxed);
            }
            (error::of_enqueue(error).with_context("topic", topic), fatal)
        })
    }
}

#[async_trait]
impl Producer for KafkaProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        let native = match self.engine.native() {
            Some(native) if !self.closed.load(Ordering::Acquire) => native,
            _ => return done.fail_all(&Error::closed("producer").with_operation("send"), batch),
        };
        if batch.len() > MAX_BATCH {
            let error = Error::new(ErrorKind::InvalidInput, "too many messages in a batch").with_operation("send");
            return done.fail_all(&error, batch);
        }
        if batch.is_empty() {
            return;
        }
        // One look at the clock for the whole batch; librdkafka would look for every message.
        let now = convert::millis(SystemTime::now()).unwrap_or(0);
        let departure = native.flights.depart(batch.len(), done, &self.share);
        let mut failed = Vec::new();
        let mut ended = false;
        for (index, message) in batch.iter().enumerate() {
            if let Err((error, fatal)) = self.enqueue(&native, message, departure.word(index), now) {
                ended |= fatal;
                // Nothing was sent; the core sends it again, to the new native producer.
                failed.push((index, error));
            }
        }
        if ended && let Err(error) = self.engine.replace(&native) {
            tracing::error!(%error, "the producer cannot be made anew");
        }
        native.flights.departed(&departure, batch, failed);
        if ended {
            retire(native);
        }
    }

    fn send_one(&self, message: Message, done: Completion) {
        let native = match self.engine.native() {
            Some(native) if !self.closed.load(Ordering::Acquire) => native,
            _ => return done.fail(0, Error::closed("producer").with_operation("send"), Some(message)),
        };
        // The clone shares what is in it. Zero is the present to librdkafka.
        let word = native.flights.depart_alone(message.clone(), done, &self.share);
        if let Err((error, fatal)) = self.enqueue(&native, &message, word, 0) {
            if fatal && let Err(error) = self.engine.replace(&native) {
                tracing::error!(%error, "the producer cannot be made anew");
            }
            native.flights.landed(word, Err(error));
            if fatal {
                retire(native);
            }
        }
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        self.closed.store(true, Ordering::Release);
        let Some(native) = self.engine.native() else { return report };
        if timeout_at(deadline, self.share.empty()).await.is_err() {
            report.unconfirmed = native.flights.abandon(&self.share);
        }
        report
    }
}
