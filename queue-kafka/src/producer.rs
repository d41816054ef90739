//! Sending.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use parking_lot::RwLock;
use queue_core::{Capabilities, CloseReport, Completion, Error, ErrorKind, Message, Producer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::BaseRecord;
use tokio::time::{Instant, timeout_at};

use crate::admin::topic_of;
use crate::convert;
use crate::error;
use crate::ffi::Route;
use crate::flights::{MAX_BATCH, Share};
use crate::link::retire;
use crate::native::{Engine, Native, Reports};

/// Whether there is nothing about a message that its record's payload and key do not tell.
fn is_bare(message: &Message) -> bool {
    message.is_plain() && message.headers().is_empty() && message.get_timestamp().is_none()
}

/// Sends to one topic.
pub(crate) struct KafkaProducer {
    topic: Arc<str>,
    engine: Arc<Engine>,
    share: Arc<Share>,
    /// The way of bare messages that are sent alone, once there was one.
    lane: RwLock<Option<Lane>>,
    closed: AtomicBool,
    capabilities: Arc<Capabilities>,
}

/// The producer's own topic at a native producer.
struct Lane {
    route: Route<Reports>,
    native: Arc<Native>,
}

impl fmt::Debug for KafkaProducer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaProducer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl KafkaProducer {
    pub(crate) fn new(topic: &str, engine: Arc<Engine>, capabilities: Arc<Capabilities>) -> Self {
        Self {
            topic: topic.into(),
            engine,
            share: Arc::default(),
            lane: RwLock::new(None),
            closed: AtomicBool::new(false),
            capabilities,
        }
    }

    /// Answers for a message that librdkafka did not take; the core sends it again, to a new native producer.
    fn failed_alone(&self, native: Arc<Native>, word: usize, message: Message, (error, fatal): (Error, bool)) {
        if fatal && let Err(error) = self.engine.replace(&native) {
            tracing::error!(%error, "the producer cannot be made anew");
        }
        native.flights.landed(word, Err(error), || Some(message));
        if fatal {
            retire(native);
        }
    }

    fn take_lane(&self, lane: Option<Lane>) {
        let old = {
            let mut present = self.lane.write();
            // A close, or another native producer, may have been faster.
            let stale = |lane: &Lane| self.closed.load(Ordering::Acquire) || lane.native.ended.load(Ordering::Acquire);
            match lane {
                Some(lane) if stale(&lane) => Some(lane),
                lane => std::mem::replace(&mut *present, lane),
            }
        };
        if let Some(old) = old {
            // It may be the last to hold its native producer.
            retire(old);
        }
    }
}

impl Drop for KafkaProducer {
    fn drop(&mut self) {
        self.share.close();
        self.take_lane(None);
    }
}

/// Gives one message to librdkafka, which copies it. An error tells whether the native producer has ended.
pub(crate) fn enqueue(
    native: &Native,
    topic: &str,
    message: &Message,
    word: usize,
    now: i64,
) -> std::result::Result<(), (Error, bool)> {
    let topic = match message.destination() {
        None => topic,
        Some(address) => topic_of(address).map_err(|e| (e.with_operation("send"), false))?,
    };
    let mut record = BaseRecord::with_opaque_to(topic, word).timestamp(convert::timestamp(message).unwrap_or(now));
    if !message.is_tombstone() {
        record = record.payload(message.payload().as_ref());
    }
    if let Some(key) = message.get_key() {
        record = record.key(key.as_ref());
    }
    record.headers = convert::headers(message);
    native.producer.send(record).map_err(|(error, _)| refused(native, error, topic))
}

/// Why librdkafka did not take a message, and whether it never will.
fn refused(native: &Native, error: KafkaError, topic: &str) -> (Error, bool) {
    let fatal = error.rdkafka_error_code() == Some(Code::Fatal);
    (native.gone.judge(topic, error::of_enqueue(error), false).with_context("topic", topic), fatal)
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
            if let Err((error, fatal)) = enqueue(&native, &self.topic, message, departure.word(index), now) {
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
        if self.closed.load(Ordering::Acquire) {
            return done.fail(0, Error::closed("producer").with_operation("send"), Some(message));
        }
        if is_bare(&message) {
            let lane = self.lane.read();
            if let Some(Lane { route, native }) =
                lane.as_ref().filter(|lane| !lane.native.ended.load(Ordering::Acquire))
            {
                let word = native.flights.depart_alone(None, done, &self.share);
                let key = message.get_key().map(AsRef::as_ref);
                if let Err(error) = route.send(message.payload(), key, word) {
                    let native = native.clone();
                    drop(lane);
                    let refused = refused(&native, error, &self.topic);
                    self.failed_alone(native, word, message, refused);
                }
                return;
            }
        }
        let Some(native) = self.engine.native() else {
            return done.fail(0, Error::closed("producer").with_operation("send"), Some(message));
        };
        let bare = is_bare(&message);
        // The clone shares what is in it. Zero is the present to librdkafka.
        let kept = (!bare).then(|| message.clone());
        let word = native.flights.depart_alone(kept, done, &self.share);
        if let Err(refused) = enqueue(&native, &self.topic, &message, word, 0) {
            self.failed_alone(native, word, message, refused);
        } else if bare {
            let route = Route::new(native.producer.clone(), &self.topic);
            self.take_lane(route.map(|route| Lane { route, native }));
        }
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        self.closed.store(true, Ordering::Release);
        self.share.close();
        self.take_lane(None);
        let Some(native) = self.engine.native() else { return report };
        if timeout_at(deadline, self.share.empty()).await.is_err() {
            report.unconfirmed = native.flights.abandon(&self.share);
        }
        report
    }
}
