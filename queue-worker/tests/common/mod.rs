//! What the tests of the worker share: an embedded broker, and a worker that runs beside them.
#![allow(dead_code, unreachable_pub, reason = "each test takes what it needs")]

use std::time::Duration;

use queue_core::{Client, Receiver, dead_letter, memory};
use queue_worker::{Control, IntoHandler, Report, Worker};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// More than anything here takes, on the tests' own clock where that is paused.
pub const SOON: Duration = Duration::from_secs(600);

pub async fn broker() -> Outcome<Client> {
    Ok(Client::connect_with("memory://", &[memory::DRIVER]).await?)
}

/// A worker that runs, and what controls it.
pub struct Running {
    pub control: Control,
    report: JoinHandle<Report>,
}

impl Running {
    pub fn start<H, Kind>(worker: Worker, handler: H) -> Self
    where
        H: IntoHandler<Kind> + Send + 'static,
        Kind: 'static,
    {
        let control = worker.control();
        Self { control, report: tokio::spawn(worker.serve(handler)) }
    }

    pub fn new(control: Control, report: JoinHandle<Report>) -> Self {
        Self { control, report }
    }

    /// Waits until the counts are so.
    pub async fn until(&self, what: impl Fn(&queue_worker::Counts) -> bool) -> Outcome {
        let wait = async {
            while !what(&self.control.counts()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = timeout(SOON, wait).await;
        waited.map_err(|_| format!("it did not come to that: {:?}", self.control).into())
    }

    pub async fn end(self) -> Outcome<Report> {
        Ok(timeout(SOON, self.report).await??)
    }

    pub async fn stop(self) -> Outcome<Report> {
        self.control.stop();
        self.end().await
    }
}

/// The only message of a queue.
pub async fn only(client: &Client, queue: &str) -> Outcome<queue_core::Delivery> {
    let mut receiver = receiver(client, queue).await?;
    Ok(timeout(SOON, receiver.receive()).await??)
}

pub async fn receiver(client: &Client, queue: &str) -> Outcome<Receiver> {
    Ok(client.receiver(queue).discard_dead_letters().await?)
}

/// Why so many messages of `orders` died, sorted.
pub async fn reasons(client: &Client, count: usize) -> Outcome<Vec<String>> {
    let mut dead = receiver(client, "orders-dlq").await?;
    let mut reasons = Vec::new();
    for _ in 0..count {
        let letter = dead.receive().await?;
        let reason = letter.headers().get(dead_letter::REASON).and_then(|value| value.as_str());
        reasons.push(reason.unwrap_or_default().to_owned());
        letter.ack();
    }
    reasons.sort();
    Ok(reasons)
}
