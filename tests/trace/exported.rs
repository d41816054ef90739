//! The spans of this process, as they were exported.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use opentelemetry::trace::{SpanId, TraceId, TracerProvider as _};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};

use crate::Outcome;

/// How long a span may take to be exported.
const PATIENCE: Duration = Duration::from_secs(120);

static EXPORTER: OnceLock<InMemorySpanExporter> = OnceLock::new();

/// As a service does it: a propagator, a provider, the bridge from `tracing`.
pub(crate) fn install() {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let exporter = EXPORTER.get_or_init(InMemorySpanExporter::default);
    let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
    let bridge = tracing_opentelemetry::layer().with_tracer(provider.tracer("trace"));
    let ours = Targets::new().with_target("anyqueue", LevelFilter::DEBUG).with_target("trace", LevelFilter::DEBUG);
    let subscriber = tracing_subscriber::registry().with(bridge.with_filter(ours));
    tracing::subscriber::set_global_default(subscriber).expect("nobody else sets it");
}

/// The spans of a trace, as soon as those are among them that are named.
pub(crate) async fn spans_of(trace: TraceId, named: &[String]) -> Outcome<Spans> {
    let began = Instant::now();
    loop {
        let all = EXPORTER.get_or_init(InMemorySpanExporter::default).get_finished_spans()?;
        let spans = Spans(all.into_iter().filter(|span| span.span_context.trace_id() == trace).collect());
        match named.iter().find(|name| spans.named(name).is_err()) {
            None => return Ok(spans),
            Some(missing) if began.elapsed() > PATIENCE => {
                return Err(format!("no span `{missing}` in the trace, only {:?}", spans.names()).into());
            }
            Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Spans that may be of any trace, by name.
pub(crate) async fn anywhere(name: &str) -> Outcome<SpanData> {
    let began = Instant::now();
    loop {
        let all = EXPORTER.get_or_init(InMemorySpanExporter::default).get_finished_spans()?;
        match all.into_iter().find(|span| span.name == name) {
            Some(span) => return Ok(span),
            None if began.elapsed() > PATIENCE => return Err(format!("no span `{name}`").into()),
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// The spans of one trace.
pub(crate) struct Spans(pub(crate) Vec<SpanData>);

impl Spans {
    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.iter().map(|span| &*span.name).collect()
    }

    pub(crate) fn named(&self, name: &str) -> Outcome<&SpanData> {
        self.0.iter().find(|span| span.name == name).ok_or_else(|| format!("no span `{name}`").into())
    }
}

pub(crate) fn id(span: &SpanData) -> SpanId {
    span.span_context.span_id()
}

/// An attribute as text.
pub(crate) fn attribute(span: &SpanData, name: &str) -> Option<String> {
    span.attributes.iter().find(|known| known.key.as_str() == name).map(|known| known.value.to_string())
}
