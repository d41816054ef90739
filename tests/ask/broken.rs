//! A connection that breaks while a request waits.

use std::sync::Arc;
use std::time::Duration;

use anyqueue::worker::{Job, Worker};
use anyqueue::{ErrorKind, Outcome as Sent, connect};
use tokio::sync::Notify;

use crate::Outcome;
use crate::place::{self, Place};
use crate::proxy::Proxy;
use crate::serving::{Stage, soon};

/// The URL of the place through a link that can be cut.
async fn through(place: &Place) -> Outcome<(Proxy, String)> {
    let server = place.url.rsplit_once('@').ok_or("a URL without a user")?.1;
    let proxy = Proxy::to(server.split(['/', '?']).next().unwrap_or(server).parse()?).await;
    let url = place.url.replace(server, &format!("127.0.0.1:{}", proxy.port()));
    Ok((proxy, url))
}

pub(crate) async fn a_lost_connection_fails_what_waits_and_the_next_request_works(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "lost").await?;
    let (proxy, url) = through(&stage.place).await?;
    let client = connect(&url).await?;
    let (begun, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (at, until) = (begun.clone(), end.clone());
    let serving = stage
        .serve(move |job: Job| {
            let (at, until) = (at.clone(), until.clone());
            async move {
                if job.text() == Some("slow") {
                    at.notify_one();
                    until.notified().await;
                }
                job.into_message()
            }
        })
        .await?;
    let asking = tokio::spawn({
        let (client, queue) = (client.clone(), stage.queue.clone());
        async move { client.request(&queue, "slow").await }
    });
    soon(begun.notified()).await?;
    proxy.cut();
    let error = soon(asking).await??.err().ok_or("it was answered")?;
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Connection, Sent::Unknown), "{error}");
    proxy.mend();
    end.notify_one();
    // Waits for the connection by itself; the old reply is nobody's.
    let reply = soon(async { client.request(&stage.queue, "again").timeout(Duration::from_secs(50)).await }).await??;
    assert_eq!(reply.text(), Some("again"));
    client.close(Duration::from_secs(10)).await;
    serving.stop().await?;
    stage.clear().await
}

pub(crate) async fn a_worker_replies_when_its_connection_is_back(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "mended").await?;
    let (proxy, url) = through(&stage.place).await?;
    let far = connect(&url).await?;
    let proxy = Arc::new(proxy);
    let cut = proxy.clone();
    let worker = Worker::new(far.receiver(&stage.queue).await?);
    let control = worker.control();
    // The first try loses its connection before it can reply.
    let serving = tokio::spawn(worker.serve(move |job: Job| {
        let cut = cut.clone();
        async move {
            if job.attempt() == 1 && job.text() == Some("x") {
                cut.cut();
                cut.mend();
            }
            job.into_message()
        }
    }));
    let reply = stage.client.request(&stage.queue, "x").timeout(Duration::from_secs(50)).await?;
    assert_eq!(reply.text(), Some("x"));
    place::until(|| control.counts().processed > 0).await;
    control.stop();
    soon(serving).await??;
    far.close(Duration::from_secs(10)).await;
    stage.clear().await
}
