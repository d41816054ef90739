//! What the worker costs beside a bare loop over the receiver: CPU of the process per message, on the embedded broker.
//!
//! Each run is a process of its own (this program again), and the two sides alternate, so that noise hits both. Both take
//! the same messages, which are there before the clock starts, do the same with each, and acknowledge it. The difference
//! of the two is what the worker costs: a place among the handlers, an answer by the result, and, for handlers that wait
//! (for one turn of the runtime here), a task for each message. Those that do not wait run in the worker's own.
//!
//! With the feature `otel` there are two cases more: handlers whose spans go to OpenTelemetry, each with the sender's context
//! from its message and dropped at the end, and handlers of whom metrics are recorded. What they cost beside those of the first
//! case is what observation costs.
//!
//! | variable | |
//! | --- | --- |
//! | `PAIRS` | pairs of runs per case (15) |
//! | `MESSAGES` | messages per run (500,000) |
//! | `THREADS` | threads of the runtime of each run (2) |
//! | `CASE` | a part of the name of the cases to run: `64` handlers at a time, `1` |
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "figures of a benchmark are small")]

#[path = "../../benches/common/compare.rs"]
mod compare;
#[cfg(feature = "otel")]
mod observed;
#[path = "../../benches/common/process.rs"]
mod process;

use compare::{compare, setting, title};
use process::{Meter, Outcome, Run};
use queue_core::{Client, Message, memory};
use queue_worker::{Job, Worker};

/// Messages of a batch that is sent.
const BATCH: usize = 1000;
/// Handlers at a time.
const CASES: &[&str] = &[
    "64 handlers",
    "1 handler",
    "64 handlers that wait",
    #[cfg(feature = "otel")]
    "64 handlers with metrics",
    #[cfg(feature = "otel")]
    "64 handlers with spans",
];

fn main() {
    if let Some(run) = Run::from_environment() {
        let work = run.clone();
        // On a worker of the runtime, as a service does its work.
        let outcome = runtime().block_on(async { tokio::spawn(async move { measure(&work).await }).await });
        return run.print(outcome.expect("the run ends well"));
    }
    let (pairs, messages) = (setting("PAIRS", 15), setting("MESSAGES", 500_000));
    let wanted = setting("CASE", String::new());
    println!("{messages} messages a run, {pairs} pairs; µs are CPU of the process per message");
    title("bare");
    for case in CASES.iter().filter(|case| case.contains(&wanted)) {
        let (url, kind) = ("memory://?capacity=10000000".to_owned(), "memory".to_owned());
        let run = Run { case: (*case).to_owned(), raw: false, url, kind, size: 64, messages, rate: 0.0 };
        compare(&run, pairs, "bare");
    }
}

async fn measure(run: &Run) -> Outcome {
    #[cfg(feature = "otel")]
    observed::install(&run.case);
    let client = Client::connect_with(&run.url, &[memory::DRIVER]).await.unwrap();
    let sender = client.sender(run.queue()).await.unwrap();
    let payload = bytes::Bytes::from("x".repeat(run.size));
    for _ in 0..run.messages / BATCH {
        sender.send_batch((0..BATCH).map(|_| Message::new(payload.clone()))).await.unwrap();
    }
    let messages = run.messages / BATCH * BATCH;
    let mut receiver = client.receiver(run.queue()).await.unwrap();
    let waits = run.case.ends_with("wait");
    let meter = Meter::start();
    if run.raw {
        for _ in 0..messages {
            let delivery = receiver.receive().await.unwrap();
            handle(&delivery, waits).await;
            delivery.ack();
        }
        return meter.end(messages);
    }
    let handlers = if run.case.starts_with("64") { 64 } else { 1 };
    let worker = Worker::new(receiver).concurrency(handlers);
    let control = worker.control();
    let mut left = messages;
    let report = worker.serve(move |job: Job| {
        left -= 1;
        if left == 0 {
            control.stop();
        }
        async move { handle(job.message(), waits).await }
    });
    assert_eq!(report.await.counts.processed, messages as u64);
    meter.end(messages)
}

/// What both sides do with a message.
async fn handle(message: &Message, waits: bool) {
    std::hint::black_box(message.payload().len());
    if waits {
        tokio::task::yield_now().await;
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let threads = setting("THREADS", 2);
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().expect("a runtime")
}
