//! Workers that answer.

use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyqueue::worker::{Failure, Job, Json, Typed, codec};
use anyqueue::{Error, ErrorKind, Message, Result, Source};
use tokio::time::Instant;

use crate::place::{self, Place};
use crate::serving::{SOON, Stage, soon};
use crate::{Outcome, WANTED};

fn remote(result: Result<Message>, sort: &str, why: &str) -> Outcome {
    let error: Error = result.err().ok_or("it was answered")?;
    assert_eq!((error.kind(), error.context("sort"), error.message()), (ErrorKind::Remote, Some(sort), why), "{error}");
    Ok(())
}

pub(crate) async fn a_handlers_value_is_the_reply(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "value").await?;
    let double = |Json(n): Json<u32>| async move { Ok::<_, Failure>(Json(n * 2)) };
    let serving = stage.serve(double).await?;
    let reply = stage.client.request(&stage.queue, "21").await?;
    assert_eq!((reply.text(), reply.get_content_type()), (Some("42"), Some("application/json")));
    // The reply came before the ack.
    place::until(|| serving.control.counts().processed == 1).await;
    assert!(serving.stop().await?.is_clean());
    let typed =
        |Typed(n, ..): Typed<u32, codec::MessagePack>| async move { Typed::<u32, codec::MessagePack>::new(n + 1) };
    let serving = stage.serve(typed).await?;
    let reply = stage.client.request(&stage.queue, vec![6]).await?;
    assert_eq!(reply.payload().as_ref(), [7]);
    assert!(serving.stop().await?.is_clean());
    stage.clear().await
}

pub(crate) async fn a_reply_goes_where_the_request_says(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "whereto").await?;
    // Whatever the message was made for.
    let elsewhere = anyqueue::Address::queue(&format!("{}-elsewhere", stage.queue))?;
    let answer = move |_: Job| {
        let reply = Message::new("here").to(elsewhere.clone()).reply_to("me").correlation_id("mine");
        async move { reply }
    };
    let serving = stage.serve(answer).await?;
    let reply = stage.client.request(&stage.queue, "where?").await?;
    assert_eq!((reply.text(), reply.get_reply_to()), (Some("here"), None));
    assert!(serving.stop().await?.is_clean());
    stage.clear().await
}

pub(crate) async fn a_permanent_error_reaches_the_caller(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "permanent").await?;
    let serving = stage
        .serve(|_: Job| async {
            let cause = std::io::Error::other("the password is hunter2");
            let error = Error::new(ErrorKind::Codec, "the customer is unknown").with_source(cause);
            Err::<Json<u32>, _>(Failure::permanent(error))
        })
        .await?;
    remote(stage.client.request(&stage.queue, "x").await, "permanent", "the customer is unknown")?;
    assert_eq!(serving.stop().await?.counts.dead_lettered, 1);
    // What the decoder says is one too.
    let serving = stage.serve(|Json(n): Json<u32>| async move { Json(n) }).await?;
    let error = stage.client.request(&stage.queue, "no number").await.err().ok_or("it was answered")?;
    assert_eq!((error.kind(), error.context("sort")), (ErrorKind::Remote, Some("permanent")), "{error}");
    serving.stop().await?;
    stage.clear().await
}

pub(crate) async fn a_temporary_error_is_tried_again_first(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "temporary").await?;
    let serving = stage
        .serve(|job: Job| async move {
            match job.attempt() {
                1 => Err("not now"),
                attempt => Ok(Json(attempt)),
            }
        })
        .await?;
    assert_eq!(stage.client.request(&stage.queue, "x").timeout(SOON).await?.text(), Some("2"));
    assert_eq!(serving.stop().await?.counts.failed, 1);
    stage.clear().await
}

pub(crate) async fn the_last_attempts_error_reaches_the_caller(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "last").await?;
    let serving = stage.serve(|job: Job| async move { Err::<(), _>(format!("attempt {}", job.attempt())) }).await?;
    remote(stage.client.request(&stage.queue, "x").timeout(SOON).await, "exhausted", "attempt 3")?;
    let report = serving.stop().await?;
    assert_eq!((report.counts.failed, report.counts.dead_lettered), (3, 1));
    stage.clear().await
}

pub(crate) async fn what_a_panic_says_reaches_nobody(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "panic").await?;
    let serving = stage
        .serve(|job: Job| async move {
            if job.attempt() > 0 {
                panic_any(WANTED);
            }
            Json(1)
        })
        .await?;
    remote(stage.client.request(&stage.queue, "x").timeout(SOON).await, "exhausted", "the handler panicked")?;
    assert_eq!(serving.stop().await?.counts.panicked, 3);
    stage.clear().await
}

pub(crate) async fn a_request_is_handed_to_another_when_its_worker_ends(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "another").await?;
    let started = Arc::new(AtomicU32::new(0));
    let seen = started.clone();
    let first = stage
        .serve(move |_: Job| {
            seen.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<Json<u32>>()
        })
        .await?;
    let (client, queue) = (stage.client.clone(), stage.queue.clone());
    let asking = tokio::spawn(async move { client.request(&queue, "x").timeout(SOON).await });
    soon(place::until(|| started.load(Ordering::SeqCst) == 1)).await?;
    // Its drain is over at once: the handler is dropped and the request given back.
    assert_eq!(first.stop().await?.counts.processed, 0);
    let second = stage.serve(|_: Job| async { Json("from another") }).await?;
    assert_eq!(soon(asking).await???.text(), Some("\"from another\""));
    assert!(second.stop().await?.is_clean());
    stage.clear().await
}

pub(crate) async fn what_nobody_waits_for_is_not_worked_on(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "over").await?;
    let start = Instant::now();
    let result = stage.client.request(&stage.queue, "old").timeout(Duration::from_secs(4)).await;
    assert_eq!(result.err().map(|e| e.kind()), Some(ErrorKind::Timeout), "after {:?}", start.elapsed());
    let able = stage.client.sender(&stage.queue).await?.capabilities().ttl;
    let source = Source::new(stage.queue.parse()?);
    // A time to live ends by the clock of the server, which began a little later; memory looks when it is received.
    while able && stage.place.name != "memory" && stage.client.stats(&source).await?.ready != Some(0) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let worked = Arc::new(AtomicU32::new(0));
    let seen = worked.clone();
    let serving = stage
        .serve(move |job: Job| {
            seen.fetch_add(1, Ordering::SeqCst);
            async move { job.into_message() }
        })
        .await?;
    assert_eq!(stage.client.request(&stage.queue, "new").await?.text(), Some("new"));
    let expired = serving.stop().await?.counts.expired;
    assert_eq!(worked.load(Ordering::SeqCst), 1);
    // The broker has a time to live, or the worker looks at the deadline.
    assert_eq!(expired, u64::from(!able));
    stage.clear().await
}

pub(crate) async fn a_reply_to_nobody_is_dropped(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "nobody").await?;
    let sender = stage.client.sender(&stage.queue).await?;
    let missing = stage.queue.clone() + "-gone";
    for to in
        [&*missing, "topic:x", "arn:aws:sqs:us-east-1:000000000000:x", "http://localhost/1/x", "a--b", "", &stage.queue]
    {
        sender.send(Message::new("x").reply_to(to.to_owned()).correlation_id("1")).await?;
    }
    let serving = stage.serve(|_: Job| async { Json(1) }).await?;
    soon(place::until(|| serving.control.counts().processed == 7)).await?;
    let report = serving.stop().await?;
    assert!(report.is_clean() && report.counts.failed == 0, "{report:?}");
    // Nothing was declared for it.
    let assumed = stage.client.receiver(&missing).declare(anyqueue::Declare::Verify).discard_dead_letters().await;
    assert_eq!(assumed.err().map(|e| e.kind()), Some(ErrorKind::NotFound));
    stage.clear().await
}
