//! What a message of each broker carries, and what the spans of each say.

use std::time::Duration;

use anyqueue::worker::{Batches, Failure, IntoReply, Job, Reply, Worker};
use anyqueue::{Delivery, Message, Receiver, otel};
use opentelemetry::trace::{SpanContext, SpanKind, Status, TraceContextExt};
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::exported::{anywhere, attribute, id, spans_of};
use crate::{Outcome, connect, queue};

const WITHIN: Duration = Duration::from_secs(60);

fn root() -> (Span, SpanContext) {
    let span = tracing::info_span!(target: "trace", "root");
    let context = span.context().span().span_context().clone();
    (span, context)
}

async fn next(receiver: &mut Receiver) -> Outcome<Delivery> {
    Ok(tokio::time::timeout(WITHIN, receiver.receive()).await??)
}

fn carried(message: &Message) -> SpanContext {
    otel::context(message).span().span_context().clone()
}

pub(crate) async fn headers(of: &str) -> Outcome {
    let (client, name) = (connect(of).await?, queue("headers"));
    let sender = client.sender(name.as_str()).await?;
    let mut receiver = client.receiver(name.as_str()).await?;
    let (span, context) = root();
    // Alone, handed over, in a batch, by the sink: each says where it comes from.
    let sink = async {
        use futures::SinkExt;
        sender.sink().send(Message::new("d")).await
    };
    let sends = async {
        sender.send("a").await?;
        sender.submit("b").await?.await?;
        sender.send_batch(["c"]).await?;
        sink.await
    };
    sends.instrument(span).await?;
    for _ in 0..4 {
        let delivery = next(&mut receiver).await?;
        assert_eq!(carried(&delivery).trace_id(), context.trace_id(), "{delivery:?}");
        assert!(carried(&delivery).is_remote());
        delivery.ack();
    }
    // What the program says stays, as text or, as clients in other languages write it, as bytes.
    let said = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (span, _) = root();
    let both = async {
        sender.send(Message::new("e").header("traceparent", said)).await?;
        sender.send(Message::new("f").header("traceparent", bytes::Bytes::from_static(said.as_bytes()))).await
    };
    both.instrument(span).await?;
    for _ in 0..2 {
        let delivery = next(&mut receiver).await?;
        assert_eq!(carried(&delivery).trace_id().to_string(), &said[3..35]);
        assert_eq!(delivery.headers().get_all("traceparent").count(), 1);
        delivery.ack();
    }
    // Outside of a trace the send begins one.
    sender.send("g").await?;
    let delivery = next(&mut receiver).await?;
    assert!(carried(&delivery).is_valid() && carried(&delivery).trace_id() != context.trace_id());
    delivery.ack();
    receiver.flush().await?;
    client.delete(name.as_str()).await?;
    Ok(())
}

pub(crate) async fn copies(of: &str) -> Outcome {
    let (client, name) = (connect(of).await?, queue("copies"));
    let mut receiver = client.receiver(name.as_str()).await?;
    let mut dead = client.receiver(format!("{name}-dlq").as_str()).await?;
    let (span, context) = root();
    client.sender(name.as_str()).await?.send("a").instrument(span).await?;
    let first = next(&mut receiver).await?;
    let sent = carried(&first);
    assert_eq!(sent.trace_id(), context.trace_id());
    first.retry_after(Duration::from_secs(1));
    let second = next(&mut receiver).await?;
    assert_eq!((second.attempt(), carried(&second)), (2, sent.clone()));
    second.reject("no use");
    let letter = next(&mut dead).await?;
    assert_eq!(carried(&letter), sent);
    letter.release();
    drop(dead);
    receiver.flush().await?;
    let redriven = client.redrive(name.as_str()).idle(Duration::from_secs(5)).await?;
    assert_eq!(redriven.moved, 1);
    let again = next(&mut receiver).await?;
    assert_eq!(carried(&again), sent);
    again.ack();
    receiver.flush().await?;
    client.delete(name.as_str()).await?;
    client.delete(format!("{name}-dlq").as_str()).await?;
    Ok(())
}

pub(crate) async fn spans(of: &str) -> Outcome {
    let (client, name) = (connect(of).await?, queue("spans"));
    let system = match of {
        "memory://" => "memory",
        "ANYQUEUE_TEST_AMQP_URL" => "rabbitmq",
        "ANYQUEUE_TEST_KAFKA_URL" => "kafka",
        _ => "aws_sqs",
    };
    let sender = client.sender(name.as_str()).await?;
    let mut receiver = client.receiver(name.as_str()).await?;
    let (span, context) = root();
    sender.send(Message::new("hello").id("m-1")).instrument(span.clone()).await?;
    let refused = Message::new("x").header("anyqueue-own", "1");
    assert!(sender.send_batch([refused, Message::new("y")]).instrument(span.clone()).await.is_err());
    drop(span);
    let mut process = None;
    for _ in 0..2 {
        let delivery = next(&mut receiver).await?;
        let processing = delivery.processing();
        processing.run(async { assert!(!Span::current().is_disabled()) }).await;
        if delivery.get_id() == Some("m-1") {
            process = Some(processing.span().context().span().span_context().span_id());
        }
        delivery.ack();
        processing.end();
    }
    let spans = spans_of(context.trace_id(), &[format!("process {name}"), format!("send {name}")]).await?;
    let of_message = |kind: SpanKind| {
        let is_it = |span: &&opentelemetry_sdk::trace::SpanData| {
            span.span_kind == kind && attribute(span, "messaging.message.id").as_deref() == Some("m-1")
        };
        spans.0.iter().find(is_it).ok_or(format!("no span of the message, only {:?}", spans.names()))
    };
    for (kind, operation) in [(SpanKind::Producer, "send"), (SpanKind::Consumer, "process")] {
        let span = of_message(kind)?;
        let says = |attribute_name: &str, value: &str| {
            assert_eq!(attribute(span, attribute_name).as_deref(), Some(value), "{attribute_name} of {operation}");
        };
        says("messaging.system", system);
        says("messaging.destination.name", &name);
        says("messaging.operation.type", operation);
        says("messaging.operation.name", operation);
        says("messaging.message.body.size", "5");
        assert_eq!(attribute(span, "error.type"), None);
    }
    assert_eq!(Some(id(of_message(SpanKind::Consumer)?)), process);
    let batch = spans.0.iter().find(|span| attribute(span, "messaging.batch.message_count").as_deref() == Some("2"));
    let batch = batch.ok_or("no span of the batch")?;
    assert_eq!(attribute(batch, "error.type").as_deref(), Some("invalid_input"));
    assert!(matches!(batch.status, Status::Error { .. }), "{:?}", batch.status);
    // Receiving and answering are in the trace of whoever does them, with a link to the sender's.
    let receive = anywhere(&format!("receive {name}")).await?;
    let ack = anywhere(&format!("ack {name}")).await?;
    for (span, kind) in [(&receive, "receive"), (&ack, "settle")] {
        assert_eq!(attribute(span, "messaging.operation.type").as_deref(), Some(kind));
        assert_eq!(span.span_kind, SpanKind::Client);
        assert!(span.links.iter().all(|link| link.span_context.trace_id() == context.trace_id()));
        assert!(!span.links.is_empty(), "{kind} has a link");
    }
    receiver.flush().await?;
    client.delete(name.as_str()).await?;
    Ok(())
}

pub(crate) async fn batches(of: &str) -> Outcome {
    let (client, name) = (connect(of).await?, queue("batches"));
    let sender = client.sender(name.as_str()).await?;
    let mut senders = Vec::new();
    for payload in ["a", "b"] {
        let (span, context) = root();
        sender.send(payload).instrument(span).await?;
        senders.push(context.trace_id());
    }
    let worker = Worker::new(client.receiver(name.as_str()).await?);
    let control = worker.control();
    let batches = Batches::of(2).within(Duration::from_secs(30));
    let handler = move |jobs: Vec<Job>| {
        let count = jobs.len();
        control.stop();
        async move {
            assert_eq!(count, 2);
            assert!(!Span::current().is_disabled());
        }
    };
    tokio::time::timeout(WITHIN, worker.serve_batches(batches, handler)).await?;
    let process = anywhere(&format!("process {name}")).await?;
    assert_eq!(attribute(&process, "messaging.batch.message_count").as_deref(), Some("2"));
    let mut linked: Vec<_> = process.links.iter().map(|link| link.span_context.trace_id()).collect();
    linked.sort_by_key(|id| id.to_bytes());
    senders.sort_by_key(|id| id.to_bytes());
    assert_eq!(linked, senders);
    assert!(!senders.contains(&process.span_context.trace_id()), "it is the child of neither");
    client.delete(name.as_str()).await?;
    Ok(())
}

/// What no broker takes.
struct Unsayable;

impl IntoReply for Unsayable {
    fn into_reply(self) -> Result<Reply, Failure> {
        Err(Failure::permanent("there are no words for it"))
    }
}

/// A handler that did its work, and whose reply cannot be made, has failed.
pub(crate) async fn replies(of: &str) -> Outcome {
    let (client, name) = (connect(of).await?, queue("replies"));
    client.sender(name.as_str()).await?.send("x").await?;
    let worker = Worker::new(client.receiver(name.as_str()).await?);
    let control = worker.control();
    let handler = move |_: Job| {
        control.stop();
        async { Unsayable }
    };
    let counts = tokio::time::timeout(WITHIN, worker.serve(handler)).await?.counts;
    assert_eq!((counts.processed, counts.failed, counts.dead_lettered), (0, 1, 1));
    let process = anywhere(&format!("process {name}")).await?;
    assert_eq!(attribute(&process, "error.type").as_deref(), Some("permanent"));
    assert_eq!(process.status, Status::error("there are no words for it"));
    for queue in [name.clone(), format!("{name}-dlq")] {
        client.delete(queue.as_str()).await?;
    }
    Ok(())
}
