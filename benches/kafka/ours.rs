//! The same work through the public handles.

use std::collections::VecDeque;

use anyqueue::{Message, Sender};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::process::{Meter, Outcome, Run};
use crate::raw::IN_FLIGHT;

/// Messages of a batch.
const BATCH: usize = 1024;

pub(crate) async fn run(run: &Run) -> Outcome {
    let client = anyqueue::connect(&run.url).await.unwrap();
    if run.case == "receive" {
        return receive(run, &client).await;
    }
    let sender = client.sender(format!("topic:{}", run.queue())).window(IN_FLIGHT).await.unwrap();
    let payload = Bytes::from(vec![7; run.size]);
    match run.case.as_str() {
        "declare" => Outcome::default(),
        "batch" | "fill" => batches(run, &sender, &payload).await,
        "submit" => submit(run, &sender, &payload).await,
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
        if flying.len() == IN_FLIGHT / BATCH {
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
    let mut flying = VecDeque::with_capacity(IN_FLIGHT);
    for _ in 0..run.messages {
        if flying.len() == IN_FLIGHT {
            flying.pop_front().map(async |verdict: anyqueue::Verdict| verdict.await.unwrap()).unwrap().await;
        }
        flying.push_back(sender.submit(Message::new(payload.clone())).await.unwrap());
    }
    for verdict in flying {
        verdict.await.unwrap();
    }
    meter.end(run.messages)
}

async fn receive(run: &Run, client: &anyqueue::Client) -> Outcome {
    let mut receiver = client
        .receiver(format!("topic:{}", run.queue()))
        .group(format!("bench-{}", std::process::id()))
        .prefetch(IN_FLIGHT)
        .discard_dead_letters()
        .await
        .unwrap();
    // From the first messages on: joining the group takes seconds on both sides.
    let first = receiver.receive_batch(BATCH).await.unwrap();
    let (mut bytes, mut count) = (0, first.len());
    bytes += first.iter().map(|message| message.payload().len()).sum::<usize>();
    first.ack();
    let meter = Meter::start();
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
