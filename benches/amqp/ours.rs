//! The same work through the public handles.

use std::collections::VecDeque;

use anyqueue::{Declare, Message, Sender};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::latency::open_loop;
use crate::process::{Meter, Outcome, Run};
use crate::raw::{PREFETCH, TASKS, declare, fill};

/// Messages of a batch.
const BATCH: usize = 256;
/// Batches that are handed over. The library gives the client 1,024 messages of them at most, as the other side does.
const BATCHES: usize = 8;
/// Verdicts of single messages that are awaited later.
const WINDOW: usize = 1024;

pub(crate) async fn run(run: &Run) -> Outcome {
    declare(run).await;
    if run.case == "receive" {
        return receive(run).await;
    }
    let client = anyqueue::connect(&run.url).await.unwrap();
    let sender = client.sender(run.queue()).declare(Declare::Assume).await.unwrap();
    let payload = Bytes::from(vec![7; run.size]);
    match run.case.as_str() {
        "batch" => batches(run, &sender, &payload).await,
        "submit" => submit(run, &sender, &payload).await,
        "tasks" => tasks(run, &sender, &payload).await,
        "latency" => latency(run, &sender, &payload).await,
        other => panic!("unknown case {other}"),
    }
}

async fn batches(run: &Run, sender: &Sender, payload: &Bytes) -> Outcome {
    let meter = Meter::start();
    let mut flying = FuturesUnordered::new();
    let mut left = run.messages;
    while left > 0 {
        let count = left.min(BATCH);
        left -= count;
        if flying.len() == BATCHES {
            let done: Option<()> = flying.next().await;
            done.unwrap();
        }
        let batch: Vec<_> = (0..count).map(|_| Message::new(payload.clone())).collect();
        flying.push(async move { drop(sender.send_batch(batch).await.unwrap()) });
    }
    while flying.next().await.is_some() {}
    meter.end(run.messages)
}

async fn submit(run: &Run, sender: &Sender, payload: &Bytes) -> Outcome {
    let meter = Meter::start();
    let mut flying = VecDeque::with_capacity(WINDOW);
    for _ in 0..run.messages {
        if flying.len() == WINDOW {
            flying.pop_front().map(async |verdict: anyqueue::Verdict| verdict.await.unwrap()).unwrap().await;
        }
        flying.push_back(sender.submit(Message::new(payload.clone())).await.unwrap());
    }
    for verdict in flying {
        verdict.await.unwrap();
    }
    meter.end(run.messages)
}

async fn tasks(run: &Run, sender: &Sender, payload: &Bytes) -> Outcome {
    let count = run.messages / TASKS;
    let meter = Meter::start();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (sender, payload) = (sender.clone(), payload.clone());
            tokio::spawn(async move {
                for _ in 0..count {
                    sender.send(Message::new(payload.clone())).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    meter.end(count * TASKS)
}

async fn receive(run: &Run) -> Outcome {
    fill(run);
    let client = anyqueue::connect(&run.url).await.unwrap();
    let meter = Meter::start();
    let mut receiver = client
        .receiver(run.queue())
        .prefetch(PREFETCH.into())
        .declare(Declare::Assume)
        .discard_dead_letters()
        .await
        .unwrap();
    let (mut bytes, mut count) = (0, 0);
    while count < run.messages {
        let batch = receiver.receive_batch(BATCH).await.unwrap();
        count += batch.len();
        bytes += std::hint::black_box(batch.iter().map(|message| message.payload().len()).sum::<usize>());
        batch.ack();
    }
    receiver.flush().await.unwrap();
    assert_eq!(bytes, run.size * run.messages);
    meter.end(run.messages)
}

#[expect(clippy::async_yields_async, reason = "the verdict is awaited later")]
async fn latency(run: &Run, sender: &Sender, payload: &Bytes) -> Outcome {
    open_loop(run, |_| async {
        let verdict = sender.submit(Message::new(payload.clone())).await.unwrap();
        async move { drop(verdict.await.unwrap()) }
    })
    .await
}
