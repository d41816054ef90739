//! Observation as a service has it, whose spans and metrics nobody looks at.

use std::time::Duration;

use opentelemetry::metrics::MeterProvider;
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::{InMemoryMetricExporter, PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, Span, SpanData, SpanProcessor};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};

/// Takes spans and drops them.
#[derive(Debug)]
struct Dropped;

impl SpanProcessor for Dropped {
    fn on_start(&self, _: &mut Span, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        std::hint::black_box(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// What the case observes with.
pub(crate) fn install(case: &str) {
    if case.ends_with("metrics") {
        let reader = PeriodicReader::builder(InMemoryMetricExporter::default()).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).build();
        assert!(queue_core::otel::record_metrics(&provider.meter("bench")));
        opentelemetry::global::set_meter_provider(provider);
    }
    if case.ends_with("spans") {
        opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        let provider = SdkTracerProvider::builder().with_span_processor(Dropped).build();
        let bridge = tracing_opentelemetry::layer().with_tracer(provider.tracer("bench"));
        let ours = Targets::new().with_target("anyqueue", LevelFilter::INFO);
        let subscriber = tracing_subscriber::registry().with(bridge.with_filter(ours));
        tracing::subscriber::set_global_default(subscriber).expect("nobody else sets it");
        opentelemetry::global::set_tracer_provider(provider);
    }
}
