//! The same work through the public handles.

use anyqueue::Message;
use bytes::Bytes;

use crate::process::{Meter, Outcome, Run};
use crate::raw::IN_FLIGHT;
use crate::send::{batches, submit};

/// Messages of a batch.
const BATCH: usize = 1024;
/// Messages that are fetched and not answered.
const PREFETCH: usize = 8192;

pub(crate) async fn run(run: &Run) -> Outcome {
    let client = anyqueue::connect(&run.url).await.unwrap();
    if run.case == "receive" {
        return receive(run, &client).await;
    }
    let sender = client.sender(format!("topic:{}", run.queue())).window(IN_FLIGHT).await.unwrap();
    let payload = Bytes::from(vec![7; run.size]);
    if run.case == "batch" || run.case == "submit" {
        // The connection to the leader is there when the time begins, on both sides.
        sender.send(Message::new(payload.clone())).await.unwrap();
    }
    match run.case.as_str() {
        "declare" => Outcome::default(),
        "batch" | "fill" => batches(run, &sender, &payload, BATCH, IN_FLIGHT / BATCH).await,
        "submit" => submit(run, &sender, &payload, IN_FLIGHT).await,
        other => panic!("unknown case {other}"),
    }
}

async fn receive(run: &Run, client: &anyqueue::Client) -> Outcome {
    let mut receiver = client
        .receiver(format!("topic:{}", run.queue()))
        .group(format!("bench-{}", std::process::id()))
        .prefetch(PREFETCH)
        .discard_dead_letters()
        .await
        .unwrap();
    // From the first messages on: joining the group takes seconds on both sides.
    let first = receiver.receive_batch(1).await.unwrap();
    let (mut bytes, mut count) = (0, first.len());
    bytes += first.iter().map(|message| message.payload().len()).sum::<usize>();
    let before = count;
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
    meter.end(run.messages - before)
}
