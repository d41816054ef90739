//! The same work through the public handles.

use anyqueue::{Declare, Message, Sender};
use bytes::Bytes;

use crate::latency::open_loop;
use crate::process::{Meter, Outcome, Run};
use crate::raw::{PREFETCH, TASKS, declare, fill};
use crate::send::{batches, submit};

/// Messages of a batch.
const BATCH: usize = 256;
/// Batches that are handed over. The library gives the client 512 messages of them at most, the other side 1,024.
const BATCHES: usize = 8;
/// Single messages that are handed over, as many as of the batches.
const WINDOW: usize = BATCH * BATCHES;

pub(crate) async fn run(run: &Run) -> Outcome {
    declare(run).await;
    if run.case == "receive" {
        return receive(run).await;
    }
    let client = anyqueue::connect(&run.url).await.unwrap();
    let sender = client.sender(run.queue()).declare(Declare::Assume).await.unwrap();
    let payload = Bytes::from(vec![7; run.size]);
    match run.case.as_str() {
        "batch" => batches(run, &sender, &payload, BATCH, BATCHES).await,
        "submit" => submit(run, &sender, &payload, WINDOW).await,
        "tasks" => tasks(run, &sender, &payload).await,
        "latency" => latency(run, &sender, &payload).await,
        other => panic!("unknown case {other}"),
    }
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
    // What opening takes is measured on neither side.
    let mut receiver = client
        .receiver(run.queue())
        .prefetch(PREFETCH.into())
        .declare(Declare::Assume)
        .discard_dead_letters()
        .await
        .unwrap();
    let meter = Meter::start();
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
