//! How our side sends, on every broker.

use std::collections::VecDeque;

use anyqueue::{Message, Sender};
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::process::{Meter, Outcome, Run};

/// Sends batches of so many messages, so many batches at once.
pub(crate) async fn batches(run: &Run, sender: &Sender, payload: &Bytes, size: usize, batches: usize) -> Outcome {
    let meter = Meter::start();
    let mut flying = FuturesUnordered::new();
    let mut left = run.messages;
    while left > 0 {
        let count = left.min(size);
        left -= count;
        if flying.len() == batches {
            let done: Option<()> = flying.next().await;
            done.unwrap();
        }
        let batch: Vec<_> = (0..count).map(|_| Message::new(payload.clone())).collect();
        flying.push(async move { drop(sender.send_batch(batch).await.unwrap()) });
    }
    while flying.next().await.is_some() {}
    meter.end(run.messages)
}

/// Submits single messages, and awaits each verdict so many messages later.
pub(crate) async fn submit(run: &Run, sender: &Sender, payload: &Bytes, window: usize) -> Outcome {
    let meter = Meter::start();
    let mut flying = VecDeque::with_capacity(window);
    for _ in 0..run.messages {
        if flying.len() == window {
            flying.pop_front().map(async |verdict: anyqueue::Verdict| verdict.await.unwrap()).unwrap().await;
        }
        flying.push_back(sender.submit(Message::new(payload.clone())).await.unwrap());
    }
    for verdict in flying {
        verdict.await.unwrap();
    }
    meter.end(run.messages)
}
