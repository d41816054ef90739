//! rdkafka, fed as well as it can be by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};

use crate::process::{Meter, Outcome, Run};

/// Messages without a verdict at most, on both sides.
pub(crate) const IN_FLIGHT: usize = 64 << 10;
/// How often positions are committed.
const COMMIT: Duration = Duration::from_millis(100);

/// Counts verdicts.
#[derive(Default)]
struct Counting {
    accepted: Arc<AtomicUsize>,
}

impl ClientContext for Counting {}

impl ProducerContext for Counting {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        assert!(result.is_ok());
        self.accepted.fetch_add(1, Ordering::Release);
    }
}

fn config(run: &Run) -> ClientConfig {
    let hosts = run.url.trim_start_matches("kafka://");
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", hosts.split(['?', '/']).next().unwrap_or(hosts));
    config
}

pub(crate) fn run(run: &Run) -> Outcome {
    if run.case == "receive" { receive(run) } else { send(run) }
}

fn send(run: &Run) -> Outcome {
    let accepted = Arc::new(AtomicUsize::new(0));
    let mut config = config(run);
    config.set("enable.idempotence", "true").set("acks", "all").set("linger.ms", "1");
    let context = Counting { accepted: accepted.clone() };
    let producer: ThreadedProducer<Counting> = ThreadedProducer::from_config_and_context(&config, context).unwrap();
    let (payload, topic) = (vec![7; run.size], run.queue());
    let send = || producer.send(BaseRecord::<(), _>::to(&topic).payload(&payload)).map_err(|(error, _)| error).unwrap();
    // Without a channel, a wait of its own is the cheapest there is.
    let until = |count| {
        while accepted.load(Ordering::Acquire) < count {
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    send();
    until(1);
    let meter = Meter::start();
    for sent in 1..=run.messages {
        until((sent + 1).saturating_sub(IN_FLIGHT));
        send();
    }
    until(run.messages + 1);
    meter.end(run.messages)
}

fn receive(run: &Run) -> Outcome {
    let mut config = config(run);
    config
        .set("group.id", format!("raw-{}", std::process::id()))
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("fetch.queue.backoff.ms", "10");
    let consumer: BaseConsumer = config.create().unwrap();
    consumer.subscribe(&[&run.queue()]).unwrap();
    let (mut count, mut bytes) = (0, 0);
    let next = || {
        loop {
            if let Some(record) = consumer.poll(Duration::from_millis(100)) {
                let record = record.unwrap();
                return Bytes::copy_from_slice(record.payload().unwrap_or_default()).len();
            }
        }
    };
    bytes += next();
    count += 1;
    let meter = Meter::start();
    let mut committed = Instant::now();
    while count < run.messages {
        bytes += std::hint::black_box(next());
        count += 1;
        if count % 256 == 0 && committed.elapsed() >= COMMIT {
            consumer.commit_consumer_state(CommitMode::Async).unwrap();
            committed = Instant::now();
        }
    }
    consumer.commit_consumer_state(CommitMode::Sync).unwrap();
    assert_eq!(bytes, run.size * run.messages);
    meter.end(run.messages - 1)
}
