//! What becomes of a message, by what its handler does.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use common::{Outcome, Running, broker, only, reasons, receiver};
use queue_core::{Message, dead_letter};
use queue_worker::{
    Backoff, BoxError, Breaker, Failure, IntoHandler, IntoReply, Job, Json, OrFail, Payload, Reply, Retry, Router,
    Worker,
};
use tokio::time::Instant;
use tower::limit::ConcurrencyLimit;

const SHORT: Duration = Duration::from_secs(1);

fn text<'a>(message: &'a Message, header: &str) -> Option<&'a str> {
    message.headers().get(header).and_then(|value| value.as_str())
}

#[derive(Debug)]
struct Wrapped(std::num::ParseIntError);

impl std::fmt::Display for Wrapped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the order cannot be read")
    }
}

impl std::error::Error for Wrapped {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}

#[tokio::test(start_paused = true)]
async fn a_temporary_error_is_tried_again_and_dies_with_its_own_words() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send(Message::new("x").id("7")).await?;
    let worker = Worker::new(client.receiver("orders").max_deliveries(3).await?);
    let attempts = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = attempts.clone();
    let running = Running::start(worker, move |job: Job| {
        seen.lock().push((job.attempt(), job.is_last_attempt()));
        async move { job.text().unwrap_or_default().parse::<u32>().map(drop).map_err(Wrapped) }
    });
    running.until(|counts| counts.dead_lettered == 1).await?;
    let report = running.stop().await?;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.counts.failed, report.counts.processed), (3, 0));
    assert_eq!(*attempts.lock(), [(1, false), (2, false), (3, true)]);
    let dead = only(&client, "orders-dlq").await?;
    assert_eq!(text(&dead, dead_letter::REASON), Some("the order cannot be read"));
    assert_eq!(text(&dead, dead_letter::CHAIN), Some("invalid digit found in string"));
    assert_eq!(dead.headers().get(dead_letter::ATTEMPTS).and_then(|n| n.as_int()), Some(3));
    assert_eq!(text(&dead, dead_letter::ORIGIN), Some("orders"));
    assert_eq!(dead.get_id(), Some("7"));
    dead.ack();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_permanent_error_is_a_dead_letter_at_once() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send("x").await?;
    let worker = Worker::new(client.receiver("orders").await?);
    let running = Running::start(worker, |Payload(text): Payload<String>| async move {
        text.parse::<u32>().map_err(Wrapped).or_permanent().map(drop)
    });
    running.until(|counts| counts.dead_lettered == 1).await?;
    assert_eq!(running.stop().await?.counts.failed, 1);
    let dead = only(&client, "orders-dlq").await?;
    assert_eq!(text(&dead, dead_letter::REASON), Some("the order cannot be read"));
    assert_eq!(text(&dead, dead_letter::CHAIN), Some("invalid digit found in string"));
    dead.ack();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_nothing_and_is_tried_again() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send_batch(["panics early", "panics late", "fine"]).await?;
    let worker = Worker::new(client.receiver("orders").await?).concurrency(1);
    let running = Running::start(worker, |job: Job| {
        let (text, attempt) = (job.text().unwrap_or_default().to_owned(), job.attempt());
        assert!(attempt > 1 || text != "panics early", "as the test wants it");
        async move {
            tokio::task::yield_now().await;
            assert!(attempt > 1 || text != "panics late", "as the test wants it");
        }
    });
    running.until(|counts| counts.processed == 3).await?;
    let report = running.stop().await?;
    assert!(report.is_clean(), "{report:?}");
    assert_eq!((report.counts.panicked, report.counts.failed), (2, 2));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_last_attempt_is_the_reason_of_the_dead_letter() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send("x").await?;
    let worker = Worker::new(client.receiver("orders").max_deliveries(1).await?);
    let running =
        Running::start(worker, |job: Job| async move { assert!(job.attempt() > 1, "no such thing as {}", "an order") });
    running.until(|counts| counts.dead_lettered == 1).await?;
    running.stop().await?;
    let dead = only(&client, "orders-dlq").await?;
    assert_eq!(text(&dead, dead_letter::REASON), Some("the handler panicked: no such thing as an order"));
    dead.ack();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_too_long_is_dropped_and_its_message_tried_again() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send("x").await?;
    let worker = Worker::new(client.receiver("orders").await?).deadline(SHORT);
    let began = Instant::now();
    let running = Running::start(worker, |job: Job| async move {
        if job.attempt() == 1 {
            std::future::pending::<()>().await;
        }
    });
    running.until(|counts| counts.processed == 1).await?;
    assert!(began.elapsed() >= SHORT, "{:?}", began.elapsed());
    assert_eq!(running.stop().await?.counts.failed, 1);
    Ok(())
}

#[tokio::test]
async fn a_handler_that_is_never_out_of_work_ends_at_its_deadline_too() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send("x").await?;
    let worker = Worker::new(client.receiver("orders").await?).deadline(Duration::from_millis(20));
    let running = Running::start(worker, |job: Job| async move {
        while job.attempt() == 1 {
            tokio::task::consume_budget().await;
        }
    });
    running.until(|counts| counts.processed == 1).await?;
    assert_eq!(running.stop().await?.counts.failed, 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_failure_may_say_when_it_is_tried_again() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send("x").await?;
    let worker = Worker::new(client.receiver("orders").await?);
    let began = Instant::now();
    let hour = Duration::from_secs(300);
    let running = Running::start(worker, move |job: Job| async move {
        if job.attempt() == 1 { Err("too early").or_retry_after(hour) } else { Ok(()) }
    });
    running.until(|counts| counts.processed == 1).await?;
    let took = began.elapsed();
    assert!(took >= hour && took < hour + Duration::from_secs(5), "{took:?}");
    running.stop().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_policy_decides_when_and_whether() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send("x").await?;
    let policy = |attempt, failure: &Failure| {
        assert_eq!(failure.to_string(), "no");
        if attempt < 3 { Retry::After(SHORT * attempt) } else { Retry::DeadLetter }
    };
    let worker = Worker::new(client.receiver("orders").max_deliveries(9).await?).retry(policy);
    let began = Instant::now();
    let running = Running::start(worker, |_: Job| async { Err::<(), _>(Failure::temporary("no")) });
    running.until(|counts| counts.dead_lettered == 1).await?;
    let took = began.elapsed();
    assert!(took >= 3 * SHORT && took < 4 * SHORT, "{took:?}");
    assert_eq!(running.stop().await?.counts.failed, 3);
    let worker = Worker::new(client.receiver("orders").await?).retry(Backoff::new(SHORT, SHORT));
    drop(worker);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_is_unavailable_counts_no_attempt() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send("x").await?;
    let worker = Worker::new(client.receiver("orders").max_deliveries(2).await?);
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let running = Running::start(worker, move |job: Job| {
        let call = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            assert_eq!(job.attempt(), 1);
            if call < 10 { Err("the database is away").or_unavailable() } else { Ok(()) }
        }
    });
    let began = Instant::now();
    running.until(|counts| counts.processed == 1).await?;
    // Tried once a second, and not as fast as it comes back.
    assert!((10..11).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(running.stop().await?.counts.postponed, 10);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_something_is_given_back_at_the_end() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send("x").await?;
    let breaker = Breaker::new(1).pause(1000 * SHORT, 1000 * SHORT);
    let worker = Worker::new(client.receiver("orders").await?).breaker(breaker);
    let running = Running::start(worker, |_: Job| async { Err::<(), _>("away").or_unavailable() });
    running.until(|counts| counts.postponed == 1).await?;
    let report = running.stop().await?;
    assert!(report.is_clean(), "{report:?}");
    let delivery = receiver(&client, "orders").await?.receive().await?;
    assert_eq!(delivery.attempt(), 1);
    delivery.ack();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_comes_while_the_breaker_is_open_is_given_back_at_the_end() -> Outcome {
    let client = broker().await?;
    let orders = client.sender("orders").await?;
    orders.send("first").await?;
    let breaker = Breaker::new(1).pause(1000 * SHORT, 1000 * SHORT);
    let worker = Worker::new(client.receiver("orders").max_deliveries(1).await?).concurrency(2).breaker(breaker);
    let running = Running::start(worker, |_: Job| async {
        tokio::time::sleep(SHORT).await;
        Err::<(), _>("away").or_unavailable()
    });
    // The worker waits for the second while the first fails.
    running.until(|counts| counts.postponed == 1).await?;
    orders.send("second").await?;
    tokio::time::sleep(SHORT).await;
    assert!(running.stop().await?.is_clean());
    let mut inbox = receiver(&client, "orders").await?;
    for _ in 0..2 {
        let delivery = tokio::time::timeout(SHORT, inbox.receive()).await??;
        assert_eq!(delivery.attempt(), 1);
        delivery.ack();
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_message_of_its_own_fault_does_not_keep_a_breaker_open() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send_batch(["bad", "bad", "good"]).await?;
    let breaker = Breaker::new(2).pause(SHORT, SHORT);
    let receiver = client.receiver("orders").max_deliveries(3).backoff(SHORT, SHORT).await?;
    let worker = Worker::new(receiver).concurrency(1).breaker(breaker);
    let running = Running::start(worker, |job: Job| async move {
        if job.text() == Some("bad") { Err(Failure::temporary("bad")) } else { Ok(()) }
    });
    running.until(|counts| counts.processed == 1).await?;
    client.sender("orders").await?.send_batch((0..20).map(|n| n.to_string())).await?;
    running.until(|counts| counts.processed == 21).await?;
    running.stop().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_is_stuck_holds_up_no_try() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send_batch(["stuck", "away", "good"]).await?;
    let worker = Worker::new(client.receiver("orders").await?).concurrency(2).drain(SHORT);
    let worker = worker.breaker(Breaker::new(1).pause(SHORT, SHORT));
    let running = Running::start(worker, |job: Job| async move {
        static AWAY: AtomicU32 = AtomicU32::new(0);
        match job.text() {
            Some("stuck") => std::future::pending().await,
            Some("away") if AWAY.fetch_add(1, Ordering::Relaxed) == 0 => Err("away").or_unavailable(),
            _ => Ok(()),
        }
    });
    running.until(|counts| counts.processed == 2).await?;
    assert!(!running.control.is_open());
    running.stop().await?;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn any_error_that_can_be_boxed_is_a_failure_and_a_layer_around_it_keeps_its_kind() -> Outcome {
    #[derive(Debug)]
    struct Around(BoxError);
    impl std::fmt::Display for Around {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("around it")
        }
    }
    impl std::error::Error for Around {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&*self.0)
        }
    }
    let client = broker().await?;
    client.sender("orders").await?.send_batch(["boxed", "around"]).await?;
    let worker = Worker::new(client.receiver("orders").max_deliveries(2).backoff(SHORT, SHORT).await?);
    let running = Running::start(worker, |job: Job| async move {
        match job.text() {
            Some("boxed") if job.attempt() == 1 => Err::<(), BoxError>("boxed".into()),
            Some("boxed") => Ok(()),
            _ => Err(Around(Failure::permanent("inside").into()).into()),
        }
    });
    running.until(|counts| counts.processed == 1 && counts.dead_lettered == 1).await?;
    assert_eq!(running.stop().await?.counts.failed, 2);
    let letter = receiver(&client, "orders-dlq").await?.receive().await?;
    assert_eq!(text(&letter, dead_letter::REASON), Some("around it"));
    letter.ack();
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn whatever_panics_takes_no_worker_down() -> Outcome {
    struct AtDrop;
    impl Drop for AtDrop {
        fn drop(&mut self) {
            panic!("at the drop");
        }
    }
    /// An error that may panic when it is made into one of a service.
    enum Odd {
        Plain(Failure),
        Panics,
    }
    impl From<Odd> for BoxError {
        fn from(odd: Odd) -> Self {
            match odd {
                Odd::Plain(failure) => failure.into(),
                Odd::Panics => panic!("in the conversion"),
            }
        }
    }
    let client = broker().await?;
    client.sender("orders").await?.send_batch(["policy", "drop", "error", "panic", "good"]).await?;
    let receiver = client.receiver("orders").max_deliveries(2).backoff(SHORT, SHORT).await?;
    let policy = |_: u32, failure: &Failure| match failure.to_string().as_str() {
        "policy" => panic!("in the policy"),
        _ => Retry::Default,
    };
    let worker = Worker::new(receiver).retry(policy).deadline(SHORT);
    let running = Running::start(worker, |job: Job| async move {
        match job.text() {
            Some("policy") => Err(Odd::Plain(Failure::temporary("policy"))),
            Some("error") => Err(Odd::Panics),
            Some("panic") => std::panic::panic_any(AtDrop),
            Some("drop") => {
                let _at_drop = AtDrop;
                // Past the deadline, when it is dropped.
                std::future::pending().await
            }
            _ => Ok(()),
        }
    });
    running.until(|counts| counts.processed == 1 && counts.panicked == 8).await?;
    let mut dead = dead_texts(&client, 4).await?;
    dead.sort();
    assert_eq!(dead, ["drop", "error", "panic", "policy"]);
    assert!(running.stop().await?.is_clean());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_reply_that_panics_in_the_try_of_a_breaker_stops_nobody() -> Outcome {
    struct Bad(bool);
    impl IntoReply for Bad {
        fn into_reply(self) -> Result<Reply, Failure> {
            assert!(!self.0, "as the test wants it");
            Ok(Reply::none())
        }
    }
    let client = broker().await?;
    client.sender("orders").await?.send_batch(["away", "panics", "good"]).await?;
    let receiver = client.receiver("orders").max_deliveries(1).await?;
    let worker = Worker::new(receiver).concurrency(1).breaker(Breaker::new(1).pause(SHORT, SHORT));
    let mut calls = 0;
    let running = Running::start(worker, move |job: Job| {
        calls += 1;
        let is_first = calls == 1;
        async move {
            match job.text() {
                _ if is_first => Err(Failure::unavailable("away")),
                text => Ok(Bad(text == Some("panics"))),
            }
        }
    });
    running.until(|counts| counts.processed == 2 && counts.panicked == 1).await?;
    let report = running.stop().await?;
    assert_eq!((report.counts.postponed, report.counts.released), (1, 0));
    Ok(())
}

/// The texts of two dead letters.
async fn dead_texts(client: &queue_core::Client, count: usize) -> Outcome<Vec<String>> {
    let mut dead = receiver(client, "orders-dlq").await?;
    let mut texts = Vec::new();
    for _ in 0..count {
        let letter = dead.receive().await?;
        texts.push(letter.text().unwrap_or_default().to_owned());
        letter.ack();
    }
    Ok(texts)
}

#[tokio::test(start_paused = true)]
async fn a_breaker_burns_no_attempts_while_a_dependency_is_away() -> Outcome {
    let client = broker().await?;
    client.sender("orders").await?.send_batch((0..7).map(|n| n.to_string())).await?;
    let breaker = Breaker::new(5).pause(SHORT, 8 * SHORT);
    let worker = Worker::new(client.receiver("orders").max_deliveries(2).await?).concurrency(1).breaker(breaker);
    let (began, away) = (Instant::now(), 60 * SHORT);
    let calls = Arc::new(AtomicU32::new(0));
    let counted = calls.clone();
    let running = Running::start(worker, move |_: Job| {
        counted.fetch_add(1, Ordering::Relaxed);
        async move { if began.elapsed() < away { Err(Failure::temporary("away")) } else { Ok(()) } }
    });
    running.until(|counts| counts.failed == 5).await?;
    assert!(running.control.is_open());
    running.until(|counts| counts.processed == 7).await?;
    assert!(!running.control.is_open());
    let report = running.stop().await?;
    assert_eq!(report.counts.dead_lettered, 0);
    // Five until it opened, then a try after each pause: of 1, 2, 4, and then 8 seconds, less what is left to chance.
    let tries = calls.load(Ordering::Relaxed) - 7;
    assert!((5 + 8..=5 + 14).contains(&tries), "{tries}");
    assert!(report.is_clean(), "{report:?}");
    Ok(())
}

#[derive(serde::Deserialize)]
struct Order {
    id: u32,
}

#[tokio::test(start_paused = true)]
async fn json_is_read_and_what_is_none_is_a_dead_letter() -> Outcome {
    let client = broker().await?;
    let orders = client.sender("orders").await?;
    orders.send(Message::new(r#"{"id": 7}"#).content_type("application/json; charset=utf-8")).await?;
    orders.send(r#"{"id": 8}"#).await?;
    orders.send(Message::new(r#"{"id": 9}"#).content_type("application/xml")).await?;
    orders.send("{}").await?;
    let worker = Worker::new(client.receiver("orders").await?);
    let sum = Arc::new(AtomicU32::new(0));
    let adding = sum.clone();
    let running = Running::start(worker, move |Json(order): Json<Order>, job: Job| {
        adding.fetch_add(order.id, Ordering::Relaxed);
        async move { assert_eq!(job.attempt(), 1) }
    });
    running.until(|counts| counts.processed == 2 && counts.dead_lettered == 2).await?;
    assert_eq!(running.stop().await?.counts.failed, 2);
    assert_eq!(sum.load(Ordering::Relaxed), 15);
    let reasons = reasons(&client, 2).await?;
    assert_eq!(reasons[0], "missing field `id` at line 1 column 2");
    assert_eq!(reasons[1], "the content type is application/xml, expected application/json");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_router_finds_the_handler_and_says_when_there_is_none() -> Outcome {
    let client = broker().await?;
    let orders = client.sender("orders").await?;
    for kind in ["add", "subtract", "add", "subtract", "add", "divide"] {
        orders.send(Message::new("5").header("type", kind)).await?;
    }
    orders.send("5").await?;
    let total = Arc::new(AtomicU32::new(100));
    let (plus, minus) = (total.clone(), total.clone());
    let subtract = move |Json(n): Json<u32>| {
        minus.fetch_sub(n, Ordering::Relaxed);
        async { Ok::<_, Failure>(()) }
    };
    let router = Router::by_header("type")
        .route("add", move |Json(n): Json<u32>| {
            plus.fetch_add(n, Ordering::Relaxed);
            async {}
        })
        // One that has to be asked each time whether it is ready.
        .route("subtract", ConcurrencyLimit::new(subtract.into_handler(), 1));
    let running = Running::start(Worker::new(client.receiver("orders").await?), router);
    running.until(|counts| counts.processed == 5 && counts.dead_lettered == 2).await?;
    running.stop().await?;
    assert_eq!(total.load(Ordering::Relaxed), 105);
    let reasons = reasons(&client, 2).await?;
    assert_eq!(reasons, [r#"no handler is for "divide""#, "the message does not say which handler it is for"]);
    Ok(())
}
