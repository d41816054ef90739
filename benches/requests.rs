//! Round trips of requests, answered by a worker of the same process, one after the other and many at a time.
//!
//! `cargo bench --features amqp,worker --bench requests`; RabbitMQ where `ANYQUEUE_TEST_AMQP_URL` says so.

use std::time::{Duration, Instant};

use anyqueue::worker::{Payload, Worker};
use anyqueue::{Client, Result, connect};
use futures::StreamExt;

/// Requests at a time, and in all.
const ROUNDS: [(usize, usize); 3] = [(1, 2_000), (64, 50_000), (1024, 100_000)];

#[tokio::main]
async fn main() -> Result<()> {
    measure("memory", &connect("memory://").await?).await?;
    match std::env::var("ANYQUEUE_TEST_AMQP_URL") {
        Ok(url) => measure("rabbitmq", &connect(&url).await?).await,
        Err(_) => Ok(()),
    }
}

async fn measure(name: &str, client: &Client) -> Result<()> {
    let queue = format!("bench-requests-{:x}", fastrand::u32(..));
    let worker = Worker::new(client.receiver(&queue).prefetch(2048).discard_dead_letters().await?).concurrency(1024);
    let control = worker.control();
    let serving = tokio::spawn(worker.serve(|Payload(text): Payload<String>| async move { Payload(text) }));
    for (at_a_time, count) in ROUNDS {
        let start = Instant::now();
        let ask = |n: usize| {
            let request = client.request(&queue, n.to_string());
            async move { request.await.map(drop) }
        };
        let mut asking = futures::stream::iter(0..count).map(ask).buffer_unordered(at_a_time);
        while let Some(answered) = asking.next().await {
            answered?;
        }
        let took = start.elapsed();
        let rate = count as f64 / took.as_secs_f64();
        println!(
            "{name}, {at_a_time} at a time: {rate:.0} round trips/s, {:?} each",
            took.mul_f64(at_a_time as f64 / count as f64)
        );
    }
    control.stop();
    let _ = serving.await;
    client.delete(&queue).await?;
    client.close(Duration::from_secs(10)).await;
    Ok(())
}
