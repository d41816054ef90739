//! Whoever answers, and what is left when a case is over.

use std::sync::Arc;
use std::time::Duration;

use anyqueue::worker::{Control, IntoHandler, Report, Worker};
use anyqueue::{Address, Client, Entry, Receiver, Result, Topology};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::Outcome;
use crate::place::Place;

/// More than anything here takes.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A place with a client, and a queue for requests.
pub(crate) struct Stage {
    pub(crate) place: Arc<Place>,
    pub(crate) client: Client,
    pub(crate) queue: String,
}

impl Stage {
    /// The queue is there. No receiver makes it: a poll that one leaves behind receives, and SQS counts that.
    pub(crate) async fn new(place: Arc<Place>, what: &str) -> Outcome<Self> {
        let (client, queue) = (place.client().await?, place.queue(what).replace("worker", "ask"));
        client.declare(&Topology::from_iter([Entry::new(Address::queue(&queue)?)])).await?;
        Ok(Self { place, client, queue })
    }

    pub(crate) async fn receiver(&self) -> Result<Receiver> {
        self.client.receiver(&self.queue).max_deliveries(3).backoff(Duration::from_millis(100), SOON).await
    }

    /// A worker that answers.
    pub(crate) async fn serve<H, Kind>(&self, handler: H) -> Outcome<Serving>
    where
        H: IntoHandler<Kind> + Send + 'static,
        Kind: 'static,
    {
        let worker = Worker::new(self.receiver().await?).drain(Duration::ZERO);
        let control = worker.control();
        Ok(Serving { control, report: tokio::spawn(worker.serve(handler)) })
    }

    /// Everything is closed in time and taken away.
    pub(crate) async fn clear(self) -> Outcome {
        let client = &self.client;
        for address in [self.queue.clone(), Address::queue(&self.queue)?.dead_letter().to_string()] {
            client.delete(address).await?;
        }
        let start = Instant::now();
        let report = client.close(SOON).await;
        if !report.errors.is_empty() || start.elapsed() > SOON / 2 {
            return Err(format!("closed in {:?} with {report:?}", start.elapsed()).into());
        }
        Ok(())
    }
}

pub(crate) struct Serving {
    pub(crate) control: Control,
    report: JoinHandle<Report>,
}

impl Serving {
    pub(crate) async fn stop(self) -> Outcome<Report> {
        self.control.stop();
        Ok(soon(self.report).await??)
    }
}

pub(crate) async fn soon<T>(what: impl Future<Output = T>) -> Outcome<T> {
    timeout(SOON, what).await.map_err(|_| "it takes too long".into())
}
