//! The memory broker through the public handles: messages a second and allocations per message.
//!
//! `cargo bench --bench memory` sends 64-byte payloads in batches of 256 and acknowledges every message; leases,
//! prefetch and attempts are on. `MESSAGES` sets how many a run sends (10,000,000), `RUNS` how many runs (5; the median
//! counts), `CASE` a part of the name of the cases to run, `URL` the broker and its options (`memory://?capacity=8192`). The allocations are counted on one thread, in a run of its own.

use std::time::Instant;

use anyqueue::{Client, Message, Receiver, Sender};
use bytes::Bytes;

const BATCH: usize = 256;
const PAYLOAD: usize = 64;
/// Back-pressure keeps the sender near the receiver, as a steady state has it: what is measured is the path of a
/// message, not a backlog of up to a million of them that no cache holds.
const URL: &str = "memory://?capacity=8192";

#[derive(Clone, Copy)]
enum Payload {
    /// One buffer that every message shares.
    Shared,
    /// A buffer of its own for each message.
    Fresh,
}

fn setting(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() {
    let (messages, runs) = (setting("MESSAGES", 10_000_000), setting("RUNS", 5));
    let case = std::env::var("CASE").unwrap_or_default();
    println!("{messages} messages of {PAYLOAD} bytes, batches of {BATCH}, median of {runs} runs");
    for (name, payload, pairs) in [
        ("1 sender, 1 receiver, shared payload", Payload::Shared, 1),
        ("1 sender, 1 receiver, fresh payload", Payload::Fresh, 1),
        ("4 senders, 4 receivers, shared payload", Payload::Shared, 4),
        ("4 senders, 4 receivers, fresh payload", Payload::Fresh, 4),
    ] {
        if !name.contains(&case) {
            continue;
        }
        let mut rates: Vec<f64> = (0..runs).map(|_| rate(messages, payload, pairs)).collect();
        rates.sort_by(f64::total_cmp);
        let (low, mid, high) = (rates[0], rates[rates.len() / 2], rates[rates.len() - 1]);
        println!("{name}: {mid:.2} M messages/s ({low:.2} to {high:.2})");
    }
    for (name, payload) in [("shared", Payload::Shared), ("fresh", Payload::Fresh)] {
        let (all, own) = allocations(payload);
        println!("allocations per message, {name} payload: {all:.4}, of which the payload itself {own:.4}");
    }
}

fn rate(messages: usize, payload: Payload, pairs: usize) -> f64 {
    let url = std::env::var("URL").unwrap_or_else(|_| URL.to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let client = anyqueue::connect(&url).await.unwrap();
        let per_sender = messages / pairs / BATCH * BATCH;
        let mut receivers = Vec::new();
        for _ in 0..pairs {
            receivers.push(open(&client).await);
        }
        let started = Instant::now();
        let senders: Vec<_> = (0..pairs)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move {
                    let sender = client.sender("bench").await.unwrap();
                    send(&sender, per_sender, payload).await;
                })
            })
            .collect();
        let received = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let all = per_sender * pairs;
        let done = std::sync::Arc::new(tokio::sync::Notify::new());
        let tasks: Vec<_> = receivers
            .into_iter()
            .map(|mut receiver| {
                let (received, done) = (received.clone(), done.clone());
                tokio::spawn(async move {
                    loop {
                        let count = receive(&mut receiver).await;
                        if received.fetch_add(count, std::sync::atomic::Ordering::AcqRel) + count == all {
                            done.notify_one();
                        }
                    }
                })
            })
            .collect();
        done.notified().await;
        let took = started.elapsed();
        for sender in senders {
            sender.await.unwrap();
        }
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        all as f64 / took.as_secs_f64() / 1e6
    })
}

async fn open(client: &Client) -> Receiver {
    client.receiver("bench").prefetch(4 * BATCH).await.unwrap()
}

async fn send(sender: &Sender, count: usize, payload: Payload) {
    let shared = Bytes::from(vec![7_u8; PAYLOAD]);
    for _ in 0..count / BATCH {
        let batch: Vec<Message> = (0..BATCH)
            .map(|_| match payload {
                Payload::Shared => Message::new(shared.clone()),
                Payload::Fresh => Message::new(vec![7_u8; PAYLOAD]),
            })
            .collect();
        sender.send_batch(batch).await.unwrap();
    }
}

async fn receive(receiver: &mut Receiver) -> usize {
    let batch = receiver.receive_batch(BATCH).await.unwrap();
    let count = batch.len();
    std::hint::black_box(batch.iter().map(|m| m.payload().len()).sum::<usize>());
    batch.ack();
    count
}

/// Allocations per message in all, and those that making and sharing the payload takes by itself.
fn allocations(payload: Payload) -> (f64, f64) {
    const COUNT: usize = 256 * 400;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (sender, mut receiver) = runtime.block_on(async {
        let client = anyqueue::connect("memory://").await.unwrap();
        (client.sender("bench").await.unwrap(), open(&client).await)
    });
    let mut work = || {
        runtime.block_on(async {
            for _ in 0..COUNT / BATCH {
                send(&sender, BATCH, payload).await;
                assert_eq!(receive(&mut receiver).await, BATCH);
            }
        });
    };
    work();
    let all = allocation_counter::measure(work).count_total;
    let own = match payload {
        Payload::Shared => 0,
        Payload::Fresh => {
            allocation_counter::measure(|| {
                for _ in 0..COUNT {
                    let payload = Bytes::from(vec![7_u8; PAYLOAD]);
                    drop(std::hint::black_box((payload.clone(), payload)));
                }
            })
            .count_total
        }
    };
    (all as f64 / COUNT as f64, own as f64 / COUNT as f64)
}
