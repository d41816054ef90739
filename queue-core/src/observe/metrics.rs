//! The instruments of OpenTelemetry.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter};

use super::Subject;

mod gauges;

pub(crate) use gauges::{Ages, watch};

type ErrorType = Option<&'static str>;

/// Bounds of durations that the conventions advise, in seconds.
const DURATIONS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Bounds of the delivery lag, in seconds: a message may wait for hours.
const LAGS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

static INSTRUMENTS: OnceLock<Instruments> = OnceLock::new();

#[derive(Debug)]
struct Instruments {
    sent: Counter<u64>,
    consumed: Counter<u64>,
    operation: Histogram<f64>,
    process: Histogram<f64>,
    lag: Histogram<f64>,
    retries: Counter<u64>,
    dead_letters: Counter<u64>,
    reconnects: Counter<u64>,
}

impl Instruments {
    fn new(meter: &Meter) -> Self {
        let counter = |name, unit, what| meter.u64_counter(name).with_unit(unit).with_description(what).build();
        let seconds = |name, bounds: &[f64], what| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(what);
            histogram.with_boundaries(bounds.to_vec()).build()
        };
        gauges::register(meter);
        Self {
            sent: counter("messaging.client.sent.messages", "{message}", "Messages that were sent, or failed to be"),
            consumed: counter("messaging.client.consumed.messages", "{message}", "Messages that were fetched"),
            operation: seconds("messaging.client.operation.duration", DURATIONS, "How long sends and fetches took"),
            process: seconds("messaging.process.duration", DURATIONS, "How long handlers took"),
            lag: seconds("anyqueue.delivery.lag", LAGS, "From the sending of a message to the end of its work"),
            retries: counter("anyqueue.retries", "{message}", "Messages that come again after a failed attempt"),
            dead_letters: counter("anyqueue.dead_letters", "{message}", "Messages that were given up"),
            reconnects: counter("anyqueue.reconnects", "{connection}", "Connections that came back"),
        }
    }
}

/// Records from now on with this meter; false where there is one already.
pub(crate) fn record(meter: &Meter) -> bool {
    let mut first = false;
    INSTRUMENTS.get_or_init(|| {
        first = true;
        Instruments::new(meter)
    });
    first
}

/// Whether metrics are recorded.
#[inline]
pub(crate) fn is_on() -> bool {
    INSTRUMENTS.get().is_some()
}

fn attributes(subject: &Subject) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("messaging.system", subject.system),
        KeyValue::new("messaging.destination.name", subject.address.shared_name()),
    ];
    attributes.extend(subject.group.clone().map(|group| KeyValue::new("messaging.consumer.group.name", group)));
    attributes
}

fn operation(subject: &Subject, kind: &'static str) -> Vec<KeyValue> {
    let mut attributes = attributes(subject);
    attributes.push(KeyValue::new("messaging.operation.type", kind));
    attributes.push(KeyValue::new("messaging.operation.name", kind));
    attributes
}

fn with_error(mut attributes: Vec<KeyValue>, error: ErrorType) -> Vec<KeyValue> {
    attributes.extend(error.map(|error| KeyValue::new("error.type", error)));
    attributes
}

pub(crate) fn sent(subject: &Subject, count: usize, failed: usize, took: Duration, error: ErrorType) {
    let Some(instruments) = INSTRUMENTS.get() else { return };
    let attributes = operation(subject, "send");
    if count > failed {
        instruments.sent.add((count - failed) as u64, &attributes);
    }
    let attributes = with_error(attributes, error);
    if failed > 0 {
        instruments.sent.add(failed as u64, &attributes);
    }
    instruments.operation.record(took.as_secs_f64(), &attributes);
}

pub(crate) fn received(subject: &Subject, count: usize, took: Duration, error: ErrorType) {
    let Some(instruments) = INSTRUMENTS.get() else { return };
    let attributes = with_error(operation(subject, "receive"), error);
    instruments.consumed.add(count as u64, &attributes);
    instruments.operation.record(took.as_secs_f64(), &attributes);
}

pub(crate) fn processed(subject: &Subject, took: Duration, sent: &[SystemTime], error: ErrorType) {
    let Some(instruments) = INSTRUMENTS.get() else { return };
    let attributes = operation(subject, "process");
    if error.is_none() {
        let now = SystemTime::now();
        for at in sent {
            // Clocks differ: what was sent in the future has waited for nothing.
            let lag = now.duration_since(*at).unwrap_or_default();
            instruments.lag.record(lag.as_secs_f64(), &attributes);
        }
    }
    instruments.process.record(took.as_secs_f64(), &with_error(attributes, error));
}

pub(crate) fn retried(subject: &Subject) {
    if let Some(instruments) = INSTRUMENTS.get() {
        instruments.retries.add(1, &attributes(subject));
    }
}

pub(crate) fn dead_lettered(subject: &Subject) {
    if let Some(instruments) = INSTRUMENTS.get() {
        instruments.dead_letters.add(1, &attributes(subject));
    }
}

/// A connection is up; `count` is 0 for the first time.
pub(crate) fn connected(host: &str, count: u64) {
    if let Some(instruments) = INSTRUMENTS.get() {
        instruments.reconnects.add(count, &[KeyValue::new("server.address", host.to_owned())]);
    }
}
