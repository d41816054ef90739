//! Whoever asks, and what the rest of the world may do.

use std::sync::Arc;
use std::time::Duration;

use anyqueue::{Address, Error, ErrorKind, Message, Outcome as Sent, Receiver, Replied};
use futures::future::{join, join_all};
use tokio::time::{Instant, timeout};

use crate::Outcome;
use crate::place::Place;
use crate::serving::{SOON, Stage, soon};

/// The next request, which is acknowledged.
async fn next(inbox: &mut Receiver) -> Outcome<Message> {
    let (request, ticket) = soon(inbox.receive()).await??.split();
    ticket.ack();
    Ok(request)
}

fn failed<T: std::fmt::Debug>(result: Result<T, Error>) -> Outcome<Error> {
    result.err().ok_or_else(|| "it was answered".into())
}

pub(crate) async fn a_reply_comes_to_whoever_asks(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "reply").await?;
    let mut inbox = stage.receiver().await?;
    let replier = inbox.replier();
    let question = Message::new("EUR/CHF").header("tenant", "acme").content_type("text/plain");
    let answering = async {
        let request = next(&mut inbox).await?;
        assert_eq!((request.text(), request.get_content_type()), (Some("EUR/CHF"), Some("text/plain")));
        assert_eq!(request.headers().get("tenant").and_then(|v| v.as_str()), Some("acme"));
        let reply = Message::new(vec![0, 159, 146, 150]).header("source", "x").content_type("application/x-price");
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(replier.reply(&request, reply).await?)
    };
    let (reply, answered) = join(stage.client.request(&stage.queue, question).into_future(), answering).await;
    assert_eq!(answered?, Replied::Sent);
    let reply = reply?;
    assert_eq!(reply.payload().as_ref(), [0, 159, 146, 150]);
    assert_eq!(reply.get_content_type(), Some("application/x-price"));
    assert_eq!(reply.headers().get("source").and_then(|v| v.as_str()), Some("x"));
    inbox.close(SOON).await;
    stage.clear().await
}

pub(crate) async fn a_thousand_requests_each_get_their_own_reply(place: Arc<Place>) -> Outcome {
    let count = if place.slow { 200 } else { 1000 };
    let stage = Stage::new(place, "thousand").await?;
    let serving = stage.serve(|request: Message| async move { Message::new(request.into_payload()) }).await?;
    let start = Instant::now();
    let asking = (0..count).map(|n: u32| {
        let request = stage.client.request(&stage.queue, n.to_string()).timeout(SOON);
        async move { (n.to_string(), request.await) }
    });
    for (expected, reply) in soon(join_all(asking)).await? {
        assert_eq!(reply?.text(), Some(&*expected));
    }
    eprintln!("{}: {count} requests in {:?}", stage.place.name, start.elapsed());
    assert!(serving.stop().await?.is_clean());
    stage.clear().await
}

pub(crate) async fn late_second_and_foreign_replies_are_ignored(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "late").await?;
    let mut inbox = stage.receiver().await?;
    let replier = inbox.replier();
    // The first request of a client opens its reply address, which takes its time.
    let (first, answered) = join(stage.client.request(&stage.queue, "first").into_future(), async {
        let request = next(&mut inbox).await?;
        Outcome::Ok(replier.reply(&request, "first".into()).await?)
    })
    .await;
    assert_eq!((first?.text(), answered?), (Some("first"), Replied::Sent));
    let asking = stage.client.request(&stage.queue, "late").timeout(Duration::from_secs(3));
    let (late, old) = join(asking.into_future(), next(&mut inbox)).await;
    let (late, old) = (failed(late)?, old?);
    assert_eq!((late.kind(), late.outcome()), (ErrorKind::Timeout, Sent::Unknown), "{late}");
    assert_eq!(late.context("address"), Some(&*stage.queue));
    let (reply, answered) = join(stage.client.request(&stage.queue, "next").into_future(), async {
        let request = next(&mut inbox).await?;
        replier.reply(&old, "late".into()).await?;
        let foreign = Message::new("").reply_to(request.get_reply_to().unwrap_or_default().to_owned());
        replier.reply(&foreign, "nameless".into()).await?;
        replier.reply(&foreign.correlation_id("somebody else's"), "foreign".into()).await?;
        replier.reply(&request, "right".into()).await?;
        Outcome::Ok(request)
    })
    .await;
    let request = answered?;
    assert_eq!(reply?.text(), Some("right"));
    let (reply, answered) = join(stage.client.request(&stage.queue, "last").into_future(), async {
        let last = next(&mut inbox).await?;
        // Only now: of two at once either may come first, from another partition of a log.
        replier.reply(&request, "second".into()).await?;
        Outcome::Ok(replier.reply(&last, "last".into()).await?)
    })
    .await;
    answered?;
    assert_eq!(reply?.text(), Some("last"));
    inbox.close(SOON).await;
    stage.clear().await
}

pub(crate) async fn a_request_without_a_worker_times_out(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "alone").await?;
    let start = Instant::now();
    let error = failed(stage.client.request(&stage.queue, "x").timeout(Duration::from_secs(2)).await)?;
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!((2..10).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    stage.clear().await
}

pub(crate) async fn a_request_to_no_queue_fails_at_once(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "missing").await?;
    let start = Instant::now();
    let error = failed(stage.client.request(stage.queue.clone() + "-x", "x").timeout(SOON).await)?;
    assert!(matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unroutable), "{error}");
    assert!(start.elapsed() < SOON / 2, "{:?}", start.elapsed());
    stage.clear().await
}

pub(crate) async fn a_caller_that_goes_away_leaves_nothing_behind(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "dropped").await?;
    let mut inbox = stage.receiver().await?;
    let replier = inbox.replier();
    for n in 0..5 {
        let asking = stage.client.request(&stage.queue, n.to_string()).into_future();
        let request = tokio::select! {
            reply = asking => return Err(format!("{reply:?}").into()),
            request = next(&mut inbox) => request?,
        };
        // Its caller is gone by now.
        replier.reply(&request, "for nobody".into()).await?;
    }
    let (reply, answered) = join(stage.client.request(&stage.queue, "last").into_future(), async {
        let request = next(&mut inbox).await?;
        Outcome::Ok(replier.reply(&request, "for somebody".into()).await?)
    })
    .await;
    answered?;
    assert_eq!(reply?.text(), Some("for somebody"));
    inbox.close(SOON).await;
    stage.clear().await
}

pub(crate) async fn closing_fails_what_waits_at_once(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "closing").await?;
    let mut inbox = stage.place.client().await?.receiver(&stage.queue).await?;
    let other = stage.client.clone();
    let mut asking = tokio::spawn({
        let (client, queue) = (other.clone(), stage.queue.clone());
        async move { client.request(&queue, "x").timeout(SOON).await }
    });
    let request = tokio::select! {
        reply = &mut asking => return Err(format!("{reply:?}").into()),
        request = next(&mut inbox) => request?,
    };
    let start = Instant::now();
    let (report, reply) = join(other.close(SOON), asking).await;
    let error = failed(reply?)?;
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Closed, Sent::Unknown), "{error}");
    assert!(report.errors.is_empty() && start.elapsed() < SOON / 2, "{report:?} after {:?}", start.elapsed());
    assert_eq!(failed(other.request(&stage.queue, "x").await)?.kind(), ErrorKind::Closed);
    // Where the address was the client's own it is gone.
    let to = request.get_reply_to().unwrap_or_default().to_owned();
    if to.starts_with("anyqueue-replies-") {
        let client = stage.place.client().await?;
        let gone = async {
            while client.receiver(&to).declare(anyqueue::Declare::Assume).discard_dead_letters().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        assert!(timeout(SOON, gone).await.is_ok(), "{to} stays");
        client.close(SOON).await;
    }
    inbox.close(SOON).await;
    Stage { client: stage.place.client().await?, ..stage }.clear().await
}

pub(crate) async fn what_is_no_request_is_refused(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "odd").await?;
    let huge = vec![0; stage.client.capabilities().max_message_bytes + 1];
    for (to, message, kind) in [
        (Address::topic("t")?, Message::new("x"), ErrorKind::Unsupported),
        (Address::queue(&stage.queue)?, Message::new("x").delay(Duration::from_secs(1)), ErrorKind::Unsupported),
        (Address::queue(&stage.queue)?, Message::new("x").header("anyqueue-error", "x"), ErrorKind::InvalidInput),
        (Address::queue(&stage.queue)?, Message::new(huge), ErrorKind::TooLarge),
    ] {
        let error = failed(soon(async { stage.client.request(to, message).await }).await?)?;
        assert_eq!((error.kind(), error.outcome()), (kind, Sent::NotSent), "{error}");
    }
    let error = failed(stage.client.request("a name with spaces", "x").await)?;
    assert_eq!((error.kind(), error.operation()), (ErrorKind::InvalidInput, "request"));
    stage.clear().await
}
