//! What is recorded by OpenTelemetry, and that it is right.

use std::time::{Duration, SystemTime};

use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::data::{AggregatedMetrics, MetricData, ResourceMetrics};
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use queue_core::{Client, EventKind, Events, Message, memory, otel};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Each figure with its name and attributes: a sum, the last value, or, of a histogram, how many there were.
fn figures(all: &[ResourceMetrics]) -> Vec<(String, String, f64)> {
    let mut figures = Vec::new();
    for metric in all.iter().flat_map(|all| all.scope_metrics()).flat_map(|scope| scope.metrics()) {
        let mut add = |attributes: &mut dyn Iterator<Item = &opentelemetry::KeyValue>, value: f64| {
            let mut said: Vec<_> = attributes.map(|kv| format!("{}={}", kv.key, kv.value)).collect();
            said.sort();
            figures.push((metric.name().to_owned(), said.join(" "), value));
        };
        match metric.data() {
            AggregatedMetrics::U64(MetricData::Sum(sum)) => {
                sum.data_points().for_each(|point| add(&mut point.attributes(), exact(point.value())));
            }
            AggregatedMetrics::U64(MetricData::Gauge(gauge)) => {
                gauge.data_points().for_each(|point| add(&mut point.attributes(), exact(point.value())));
            }
            AggregatedMetrics::F64(MetricData::Gauge(gauge)) => {
                gauge.data_points().for_each(|point| add(&mut point.attributes(), point.value()));
            }
            AggregatedMetrics::F64(MetricData::Histogram(histogram)) => {
                histogram.data_points().for_each(|point| add(&mut point.attributes(), exact(point.count())));
            }
            other => panic!("{}: {other:?}", metric.name()),
        }
    }
    figures
}

#[allow(clippy::cast_precision_loss, reason = "counts of a test are small")]
fn exact(count: u64) -> f64 {
    count as f64
}

#[tokio::test]
async fn every_message_is_counted_once() -> Outcome {
    let exporter = InMemoryMetricExporter::default();
    let provider = SdkMeterProvider::builder().with_reader(PeriodicReader::builder(exporter.clone()).build()).build();
    let client = Client::connect_with("memory://", &[memory::DRIVER]).await?;
    let orders = client.sender("orders").await?;
    orders.send("before anybody looks").await?;

    assert!(otel::record_metrics(&provider.meter("test")));
    assert!(!otel::record_metrics(&provider.meter("another")), "the first stays");
    orders.send(Message::new("a").timestamp(SystemTime::now())).await?;
    orders.submit(Message::new("b").timestamp(SystemTime::now())).await?.await?;
    assert!(orders.send_batch([Message::new("c"), Message::new("d").header("anyqueue-own", "1")]).await.is_err());
    assert!(orders.send(Message::new("e").header("anyqueue-own", "1")).await.is_err());

    let mut inbox = client.receiver("orders").backoff(Duration::ZERO, Duration::ZERO).await?;
    inbox.receive().await?.ack();
    let delivery = inbox.receive().await?;
    let processing = delivery.processing();
    processing.run(async {}).await;
    delivery.ack();
    processing.end();
    let delivery = inbox.receive().await?;
    let mut processing = delivery.processing();
    processing.failed("not_text", &"it is no text");
    delivery.retry();
    processing.end();
    drop(inbox.receive().await?.processing());
    inbox.receive().await?.reject("no use");
    inbox.flush().await?;
    let held = inbox.receive().await?;
    let (events, down, up) = (Events::new(), EventKind::Disconnected, EventKind::Connected);
    // Two links to one host, and one that goes to another; the last was never lost.
    let hosts = [(up, "a"), (up, "a"), (down, "a"), (down, "a"), (up, "a"), (up, "b"), (up, "c")];
    hosts.into_iter().for_each(|(kind, host)| events.emit(kind, host, None));

    provider.force_flush()?;
    let figures = figures(&exporter.get_finished_metrics()?);
    let of = |name: &str, with: &str| {
        let fits =
            |(known, said, _): &&(String, String, f64)| known == name && with.split(' ').all(|w| said.contains(w));
        figures.iter().filter(fits).map(|(_, _, value)| value).sum::<f64>()
    };
    let says = |name: &str, with: &str, value: f64| {
        assert!((of(name, with) - value).abs() < f64::EPSILON, "{name} {with}: {} is not {value}", of(name, with));
    };
    let place = "messaging.system=memory messaging.destination.name=orders";
    says("messaging.client.sent.messages", place, 5.0);
    says("messaging.client.sent.messages", "error.type=invalid_input", 2.0);
    says("messaging.client.operation.duration", "messaging.operation.type=send", 4.0);
    // Four, of which the one that failed comes twice, and the one that was dropped.
    says("messaging.client.consumed.messages", place, 6.0);
    says("messaging.process.duration", "error.type=not_text", 1.0);
    says("messaging.process.duration", "error.type=dropped", 1.0);
    says("messaging.process.duration", place, 3.0);
    says("anyqueue.delivery.lag", place, 1.0);
    says("anyqueue.retries", place, 2.0);
    says("anyqueue.dead_letters", place, 1.0);
    says("anyqueue.messages.in_flight", place, 1.0);
    says("anyqueue.reconnects", "server.address=a", 1.0);
    says("anyqueue.reconnects", "server.address=b", 1.0);
    says("anyqueue.reconnects", "server.address=c", 0.0);
    assert!(of("anyqueue.unanswered.age", place) > 0.0);
    held.ack();
    Ok(())
}
