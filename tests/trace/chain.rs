//! A request, a service that sends to Kafka, a worker that sends to RabbitMQ, a worker.

use std::collections::HashMap;
use std::time::Duration;

use anyqueue::worker::{Job, Worker};
use anyqueue::{Client, Message, Sender};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode};
use axum::routing::post;
use http_body_util::Empty;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use opentelemetry::global;
use opentelemetry::trace::{SpanKind, TraceContextExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::exported::{id, spans_of};
use crate::{KAFKA, Outcome, RABBITMQ, connect, queue};

const WITHIN: Duration = Duration::from_secs(60);

/// A service that takes an order by HTTP, in the trace of whoever asks, and sends it on.
async fn take_order(State(orders): State<Sender>, headers: HeaderMap) -> StatusCode {
    let carried: HashMap<String, String> = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
        .collect();
    let span = tracing::info_span!(target: "trace", "POST /orders", otel.kind = "server");
    let _ = span.set_parent(global::get_text_map_propagator(|propagator| propagator.extract(&carried)));
    match orders.send("an order").instrument(span).await {
        Ok(_) => StatusCode::ACCEPTED,
        Err(_) => StatusCode::BAD_GATEWAY,
    }
}

async fn ask(address: std::net::SocketAddr) -> Outcome<opentelemetry::trace::SpanContext> {
    let span = tracing::info_span!(target: "trace", "order", otel.kind = "client");
    let context = span.context();
    let mut carried = HashMap::new();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carried));
    let mut request = Request::post(format!("http://{address}/orders"));
    for (name, value) in carried {
        request = request.header(name, value);
    }
    let client = HttpClient::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let answer = client.request(request.body(Empty::new())?).await?;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    Ok(context.span().span_context().clone())
}

async fn worker(client: &Client, from: &str) -> Outcome<Worker> {
    Ok(Worker::new(client.receiver(from).await?))
}

pub(crate) async fn one_trace() -> Outcome {
    let (kafka, rabbitmq) = (connect(KAFKA).await?, connect(RABBITMQ).await?);
    let (orders, invoices) = (queue("orders"), queue("invoices"));

    let sender = kafka.sender(orders.as_str()).await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = axum::Router::new().route("/orders", post(take_order)).with_state(sender);
    let service = tokio::spawn(async move { axum::serve(listener, service).await });

    let on = rabbitmq.sender(invoices.as_str()).await?;
    let first = worker(&kafka, &orders).await?;
    let first_control = first.control();
    let first = tokio::spawn(first.serve(move |_: Job| {
        let on = on.clone();
        async move { on.send(Message::new("an invoice")).await.map(drop) }
    }));
    let (done, is_done) = oneshot::channel();
    let mut done = Some(done);
    let second = worker(&rabbitmq, &invoices).await?;
    let second_control = second.control();
    let second = tokio::spawn(second.serve(move |_: Job| {
        let done = done.take();
        async move {
            let _ = done.map(|done| done.send(()));
        }
    }));

    let root = ask(address).await?;
    tokio::time::timeout(WITHIN, is_done).await??;
    first_control.stop();
    second_control.stop();
    first.await?;
    second.await?;
    service.abort();

    let chain = [
        ("order".to_owned(), SpanKind::Client),
        ("POST /orders".to_owned(), SpanKind::Server),
        (format!("send {orders}"), SpanKind::Producer),
        (format!("process {orders}"), SpanKind::Consumer),
        (format!("send {invoices}"), SpanKind::Producer),
        (format!("process {invoices}"), SpanKind::Consumer),
    ];
    let names: Vec<_> = chain.iter().map(|(name, _)| name.clone()).collect();
    let spans = spans_of(root.trace_id(), &names).await?;
    for pair in chain.windows(2) {
        let (parent, child) = (spans.named(&pair[0].0)?, spans.named(&pair[1].0)?);
        assert_eq!(child.parent_span_id, id(parent), "{} is the child of {}", child.name, parent.name);
    }
    for (name, kind) in &chain {
        assert_eq!(spans.named(name)?.span_kind, *kind, "{name}");
    }
    assert_eq!(id(spans.named("order")?), root.span_id());
    // The answers of the workers too.
    for queue in [&orders, &invoices] {
        let spans = spans_of(root.trace_id(), &[format!("ack {queue}")]).await?;
        let (process, ack) = (spans.named(&format!("process {queue}"))?, spans.named(&format!("ack {queue}"))?);
        assert_eq!(ack.parent_span_id, id(process));
    }
    kafka.delete(orders.as_str()).await?;
    rabbitmq.delete(invoices.as_str()).await?;
    Ok(())
}
