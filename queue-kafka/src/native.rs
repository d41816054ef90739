//! A producer of librdkafka, with its thread and what it has in flight.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use queue_core::{Error, ErrorKind, Message, Receipt, Result, together};
use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext, PurgeConfig};

use crate::config::Settings;
use crate::error;
use crate::ffi::Notice;
use crate::flights::Flights;
use crate::gone::Gone;
use crate::link::retire;
use crate::monitor::{Monitor, Watch};
use crate::signal::Signal;

/// The longest sleep of a producer's thread: events wake it.
const TICK: Duration = Duration::from_millis(100);

/// What a native producer reports to, on its thread.
pub(crate) struct Reports {
    watch: Watch,
    flights: Arc<Flights>,
    gone: Arc<Gone>,
    /// Whether there was an event, and so may be more.
    served: AtomicBool,
}

/// Most messages of a report that are taken at a time.
const TOGETHER: usize = 256;

thread_local! {
    /// Messages that one event tells were accepted, to be taken together; only of the thread that serves the producer.
    static ACCEPTED: RefCell<Option<Vec<(usize, Receipt)>>> = const { RefCell::new(None) };
}

impl Reports {
    fn accepted(&self, word: usize, receipt: Receipt) {
        let room = ACCEPTED.with_borrow_mut(|accepted| {
            let Some(accepted) = accepted else { return Err(receipt) };
            accepted.push((word, receipt));
            Ok(TOGETHER - accepted.len())
        });
        match room {
            Ok(0) => self.land(),
            Ok(_) => {}
            Err(receipt) => self.flights.landed(word, Ok(receipt), || None),
        }
    }

    /// Gives the verdicts that this thread has gathered.
    fn land(&self) {
        let mut accepted =
            ACCEPTED.with_borrow_mut(|accepted| accepted.as_mut().map(std::mem::take)).unwrap_or_default();
        // Without the borrow: whoever waits may do anything.
        self.flights.accepted(&mut accepted);
        // Its room is used again.
        ACCEPTED.with_borrow_mut(|kept| {
            if let Some(kept) = kept.as_mut().filter(|kept| kept.is_empty()) {
                *kept = accepted;
            }
        });
    }
}

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.served.store(true, Ordering::Relaxed);
        self.watch.generate_oauth_token(config)
    }

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

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, word: usize) {
        self.served.store(true, Ordering::Relaxed);
        let (error, record) = match result {
            Ok(record) => {
                let receipt = match (u32::try_from(record.partition()), u64::try_from(record.offset())) {
                    (Ok(partition), Ok(offset)) => Receipt::at(partition, offset),
                    _ => Receipt::accepted(),
                };
                return self.accepted(word, receipt);
            }
            Err((error, record)) => (error, record),
        };
        let error = error::of_delivery(error.rdkafka_error_code().unwrap_or(Code::Unknown));
        let error = self.gone.judge(record.topic(), error, true);
        let message = || {
            let bytes = |part: Option<&[u8]>| part.map(Bytes::copy_from_slice);
            let message = Message::new(bytes(record.payload())?);
            Some(match bytes(record.key()) {
                Some(key) => message.key(key),
                None => message,
            })
        };
        self.flights.landed(word, Err(error), message);
    }
}

/// A native producer and what it has in flight.
pub(crate) struct Native {
    pub(crate) producer: Arc<BaseProducer<Reports>>,
    pub(crate) flights: Arc<Flights>,
    pub(crate) gone: Arc<Gone>,
    /// It was replaced, or closed: nothing more is sent with it.
    pub(crate) ended: AtomicBool,
    _thread: Thread,
}

/// The thread that serves a native producer. It ends soon after this, on its own: whoever drops this must not wait, and
/// may be that thread.
#[derive(Debug)]
struct Thread(Arc<Stop>);

#[derive(Debug, Default)]
struct Stop {
    stopped: AtomicBool,
    signal: Signal,
}

impl Thread {
    fn start(producer: &Arc<BaseProducer<Reports>>) -> Result<Self> {
        let stop = Arc::<Stop>::default();
        let told = stop.clone();
        let no_memory = || Error::new(ErrorKind::Internal, "librdkafka is out of memory").with_operation("send");
        let notice = Notice::new(producer.clone(), move || told.signal.raise()).ok_or_else(no_memory)?;
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("anyqueue-kafka-send".to_owned());
        thread.spawn(move || serve(&notice, &stopped)).map_err(|e| {
            Error::new(ErrorKind::Internal, "cannot start a thread").with_operation("send").with_source(e)
        })?;
        Ok(Self(stop))
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.signal.raise();
    }
}

fn serve(notice: &Notice<Reports>, stop: &Stop) {
    let producer = notice.producer();
    ACCEPTED.set(Some(Vec::with_capacity(TOGETHER)));
    while !stop.stopped.load(Ordering::Acquire) {
        // One event, which may tell of thousands of messages: whoever waits for them one by one is woken once.
        together(|| {
            // A panic is one of the program's own log; its hook tells it, and the messages behind it go on.
            let _ = catch_unwind(AssertUnwindSafe(|| producer.poll(Duration::ZERO)));
            let _ = catch_unwind(AssertUnwindSafe(|| producer.context().land()));
        });
        if !producer.context().served.swap(false, Ordering::Relaxed) {
            stop.signal.wait(TICK);
        }
    }
    // What the producer tells while it is dropped, here or elsewhere, is taken at once.
    ACCEPTED.set(None);
}

/// Gives up what is in flight when it goes, wherever else the native producer is held.
struct Ended(Arc<Native>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.producer.purge(PurgeConfig::default().queue().inflight());
    }
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
        let native = Native::new(&settings.producer(deadline)?, monitor)?;
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

    pub(crate) fn native(&self) -> Option<Arc<Native>> {
        self.native.read().clone()
    }

    /// Replaces a native producer that a fatal error has ended.
    pub(crate) fn replace(&self, ended: &Arc<Native>) -> Result<Arc<Native>> {
        let mut native = self.native.write();
        match &*native {
            Some(present) if !Arc::ptr_eq(present, ended) => return Ok(present.clone()),
            Some(_) => {}
            None => return Err(Error::closed("broker")),
        }
        tracing::warn!("the producer met a fatal error and is made anew");
        let made = Arc::new(Native::new(&self.settings.producer(self.deadline)?, &self.monitor)?);
        if let Some(old) = native.replace(made.clone()) {
            old.end();
        }
        Ok(made)
    }

    /// Makes sure that a topic that exists is not taken for gone any more: librdkafka itself notices after a moment.
    pub(crate) async fn find(&self, topic: &str) {
        if let Some(native) = self.native() {
            native.find(topic, self.settings.config.request_timeout).await;
        }
    }

    /// Ends the native producer; what it has in flight is answered `Unknown`.
    pub(crate) fn close(&self) {
        if let Some(native) = self.native.write().take() {
            native.end();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.close();
    }
}

impl Native {
    pub(crate) fn new(config: &ClientConfig, monitor: &Arc<Monitor>) -> Result<Self> {
        let flights = Arc::new(Flights::default());
        let gone = Arc::<Gone>::default();
        let reports = Reports {
            watch: Watch(monitor.clone()),
            flights: flights.clone(),
            gone: gone.clone(),
            served: AtomicBool::new(false),
        };
        let producer = BaseProducer::from_config_and_context(config, reports).map_err(|e| error::of_config(&e))?;
        let producer = Arc::new(producer);
        let thread = Thread::start(&producer)?;
        Ok(Self { producer, flights, gone, ended: AtomicBool::new(false), _thread: thread })
    }

    /// Sends nothing more: what is in flight is answered `Unknown`, and whoever still has it lets go of it in time.
    pub(crate) fn end(self: Arc<Self>) {
        self.ended.store(true, Ordering::Release);
        retire(Ended(self));
    }

    /// See [`Engine::find`].
    pub(crate) async fn find(self: Arc<Self>, topic: &str, within: Duration) {
        if self.gone.any() {
            let topic = topic.to_owned();
            // Where it fails, so do the messages, and with a reason.
            let _ = tokio::task::spawn_blocking(move || self.look(&topic, within)).await;
        }
    }

    /// Asks the cluster for a topic, by which librdkafka learns of it.
    fn look(self: Arc<Self>, topic: &str, within: Duration) {
        match self.producer.client().fetch_metadata(Some(topic), within) {
            Ok(found) if found.topics().iter().any(|t| t.name() == topic && t.error().is_none()) => {
                self.gone.found(topic)
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(topic, %error, "a topic cannot be looked for"),
        }
        retire(self);
    }
}
