//! The same work through the public handles.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt};
use queue_core::{Client, Declare, Message, Sender};
use queue_sqs::DRIVER;

use crate::process::{Meter, Outcome, Run};
use crate::raw;

/// Messages of a batch; the library cuts its requests itself.
const BATCH: usize = 100;
/// Batches that are handed over.
const BATCHES: usize = 4;
/// Concurrent senders of one message at a time.
const TASKS: usize = 1000;
/// Messages that the receiver may hold.
const PREFETCH: usize = 200;

pub(crate) async fn run(run: &Run) -> Outcome {
    let native = raw::client(run);
    let (queue, url) = raw::declare(run, &native).await;
    let client = Client::connect_with(&run.url, &[DRIVER]).await.unwrap();
    if run.case == "receive" {
        raw::send(&native, &url, run.messages, &raw::payload(run)).await;
        return receive(run, &client, &queue).await;
    }
    let sender = client.sender(queue).declare(Declare::Assume).await.unwrap();
    let payload = raw::payload(run);
    match run.case.as_str() {
        "batch" => batches(run, &sender, &payload).await,
        "tasks" => tasks(run, &sender, &payload).await,
        other => panic!("unknown case {other}"),
    }
}

async fn batches(run: &Run, sender: &Sender, payload: &str) -> Outcome {
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
        let batch: Vec<_> = (0..count).map(|_| Message::new(payload.to_owned())).collect();
        flying.push(async move { drop(sender.send_batch(batch).await.unwrap()) });
    }
    while flying.next().await.is_some() {}
    meter.end(run.messages)
}

async fn tasks(run: &Run, sender: &Sender, payload: &str) -> Outcome {
    let count = run.messages / TASKS;
    // Both sides copy each message from the same place.
    let payload: Arc<str> = payload.into();
    let meter = Meter::start();
    let tasks: Vec<_> = (0..TASKS)
        .map(|_| {
            let (sender, payload) = (sender.clone(), payload.clone());
            tokio::spawn(async move {
                for _ in 0..count {
                    sender.send(Message::new(payload.to_string())).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    meter.end(count * TASKS)
}

async fn receive(run: &Run, client: &Client, queue: &str) -> Outcome {
    let meter = Meter::start();
    let opening = client.receiver(queue).prefetch(PREFETCH).declare(Declare::Assume).discard_dead_letters();
    let mut receiver = opening.await.unwrap();
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
