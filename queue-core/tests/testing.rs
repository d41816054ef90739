//! The client for tests: what it records, what its assertions say, and that each fault is one.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use queue_core::memory::Profile;
use queue_core::testing::{RecordedAnswer, TestClient};
use queue_core::{
    Answered, ErrorKind, EventKind, HealthState, Message, OnUnknown, Ordering, Outcome, Receiver, Result, Sender,
};
use tokio::time::{Instant, timeout};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

async fn open(client: &TestClient) -> Result<(Sender, Receiver)> {
    Ok((client.sender("orders").await?, client.receiver("orders").await?))
}

/// What an assertion that fails says.
async fn failure(assertion: impl Future) -> String {
    let panic = AssertUnwindSafe(assertion).catch_unwind().await.err().expect("it does not fail");
    panic.downcast_ref::<String>().expect("a text").clone()
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_received_and_answered_is_recorded() -> Result<()> {
    let client = TestClient::new();
    let (orders, mut inbox) = open(&client).await?;
    for body in ["ack", "retry", "reject", "release"] {
        orders.send(Message::new(body).key("k")).await?;
    }
    for _ in 0..4 {
        let delivery = inbox.receive().await?;
        match delivery.text() {
            Some("ack") => delivery.ack(),
            Some("retry") => delivery.retry_after(HOUR),
            Some("reject") => delivery.reject("no such customer"),
            _ => delivery.release(),
        };
    }
    let sent = client.sent("orders").count(4).await;
    assert_eq!((sent[1].message.text(), sent[1].message.get_key().unwrap().as_ref()), (Some("retry"), &b"k"[..]));
    assert!(sent.iter().all(|sent| sent.told.is_ok()));
    let text = |message: &Message| message.text().unwrap().to_owned();
    assert_eq!(text(&client.acked("orders").one().await.message), "ack");
    assert_eq!(text(&client.released("orders").one().await.message), "release");
    let retried = client.retried("orders").one().await;
    assert_eq!((retried.attempt, retried.answer), (1, RecordedAnswer::Retried { delay: Some(HOUR) }));
    let dead = client.dead_lettered("orders").one().await;
    let reason = "no such customer".to_owned();
    assert_eq!(dead.answer, RecordedAnswer::DeadLettered { reason, to: "orders-dlq".parse()? });
    client.sent("orders-dlq").one().await;
    client.answered("*").count(4).await;

    inbox.receive().await?.ack(); // the one that was released
    let start = Instant::now();
    let again = inbox.receive().await?;
    assert_eq!((again.attempt(), start.elapsed().as_secs().abs_diff(3600) < 2), (2, true));
    let received = client.received("orders").matching(|received| received.attempt == 2);
    assert_eq!(text(&received.one().await.message), "retry");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_recorded_on_brokers_that_make_it_otherwise() -> Result<()> {
    for (profile, told) in [(Profile::Amqp, Some(HOUR)), (Profile::Kafka, None), (Profile::Sqs, Some(HOUR))] {
        let client = TestClient::with_profile(profile);
        let (orders, mut inbox) = open(&client).await?;
        orders.send("7").await?;
        inbox.receive().await?.retry_after(HOUR);
        let delivery = inbox.receive().await?;
        assert_eq!(delivery.attempt(), 2);
        delivery.ack();
        let answers = client.answered("orders").count(2).await;
        assert_eq!(answers[0].answer, RecordedAnswer::Retried { delay: told }, "{profile:?}");
        assert_eq!((&answers[1].answer, answers[1].attempt), (&RecordedAnswer::Acked, 2), "{profile:?}");
        client.sent("orders").one().await;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_copy_whose_message_was_lost_makes_no_retry_of_an_ack() -> Result<()> {
    let client = TestClient::with_profile(Profile::Amqp);
    let (orders, mut inbox) = open(&client).await?;
    orders.send("7").await?;
    client.faults().on_ack("orders").nth(1).fail(ErrorKind::LeaseLost);
    inbox.receive().await?.retry_after(SECOND);
    let (original, copy) = (inbox.receive().await?, inbox.receive().await?);
    assert_eq!((original.attempt(), copy.attempt()), (1, 2));
    copy.ack();
    assert_eq!(client.acked("orders").one().await.attempt, 2);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_assertion_waits_until_it_is_so() -> Result<()> {
    let client = TestClient::new();
    let (orders, _inbox) = open(&client).await?;
    tokio::spawn(async move {
        tokio::time::sleep(4 * SECOND).await;
        orders.send("7").await
    });
    let start = Instant::now();
    client.sent("orders").one().await;
    assert_eq!(start.elapsed(), 4 * SECOND);
    client.sent("orders").at_least(1).await;
    assert_eq!(client.sent("orders").all().len(), 1);
    let payments = client.sent("payments");
    payments.none();
    client.sent("payments").none_within(HOUR).await;
    assert_eq!(start.elapsed(), 4 * SECOND + HOUR);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_assertion_that_fails_tells_what_happened_instead() -> Result<()> {
    let client = TestClient::new();
    let nothing = failure(client.sent("orders").one()).await;
    assert!(nothing.ends_with("expected 1 sent to orders within 5s, found 0; nothing happened"), "{nothing}");
    assert!(nothing.contains("tests/testing.rs:"), "{nothing}");

    let (orders, mut inbox) = open(&client).await?;
    let start = Instant::now();
    orders.send(Message::new("7").key("k").id("a").header("tenant", "acme").header("n", 7)).await?;
    inbox.receive().await?.retry_after(SECOND);
    let _again = inbox.receive().await?;
    let text = failure(client.dead_lettered("orders").within(2 * SECOND).one()).await;
    assert_eq!(start.elapsed().as_secs(), 3);
    let shown = r#""7", key "k", id "a", tenant="acme", n=Int(7)"#;
    for line in [
        "expected 1 dead-lettered from orders within 2s, found 0; this happened:".to_owned(),
        format!("sent to orders: {shown}"),
        format!("received from orders, attempt 1: {shown}"),
        format!("retried in 1s from orders, attempt 1: {shown}"),
        format!("received from orders, attempt 2: {shown}"),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }

    let more = failure(client.received("orders").one()).await;
    assert!(more.contains("expected 1 received from orders within 5s, found 2"), "{more}");
    assert_eq!(more.lines().filter(|line| line.starts_with("  * ")).count(), 2, "{more}");
    let fewer = failure(client.sent("orders").matching(|_| true).at_least(2)).await;
    assert!(fewer.contains("expected at least 2 sent to orders that match within 5s, found 1"), "{fewer}");
    let none = failure(async { client.sent("orders").none() }).await;
    assert!(none.contains("expected 0 sent to orders, found 1"), "{none}");
    let none = failure(client.sent("orders").none_within(SECOND)).await;
    assert!(none.contains("expected 0 sent to orders within 1s, found 1"), "{none}");

    for n in 0..30 {
        orders.send(format!("{n}")).await?;
    }
    let many = failure(client.sent("payments").within(SECOND).one()).await;
    assert!(many.contains("… and ") && many.lines().count() <= 22, "{many}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_send_fails_as_asked() -> Result<()> {
    let client = TestClient::new();
    let (orders, _inbox) = open(&client).await?;
    let refused = client.faults().on_send("orders").nth(2).fail(ErrorKind::Rejected, Outcome::Rejected);
    orders.send("1").await?;
    let error = orders.send("2").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Rejected, Outcome::Rejected));
    orders.send("3").await?;
    assert_eq!(refused.count(), 1);
    client.sent("orders").count(2).await;
    let failed = client.tried("orders").matching(|tried| !tried.stored).one().await;
    assert_eq!((failed.message.text(), failed.told.unwrap_err().kind()), (Some("2"), ErrorKind::Rejected));

    let lost = client.faults().on_send("*").times(2).fail(ErrorKind::Throttled, Outcome::NotSent);
    orders.send("4").await?;
    assert_eq!(lost.count(), 2);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_send_and_a_verdict_are_lost() -> Result<()> {
    let client = TestClient::new();
    let orders = client.sender("orders").on_unknown(OnUnknown::Fail).await?;
    client.faults().on_send("orders").times(1).lose();
    assert_eq!(orders.send("lost").await.unwrap_err().outcome(), Outcome::Unknown);
    client.sent("orders").none();
    client.faults().on_send("orders").times(1).lose_verdict();
    assert_eq!(orders.send("stored").await.unwrap_err().outcome(), Outcome::Unknown);
    assert_eq!(client.sent("orders").one().await.message.text(), Some("stored"));

    // By default it is sent again, and may be there twice.
    let client = TestClient::new();
    let (orders, mut inbox) = open(&client).await?;
    client.faults().on_send("orders").times(1).lose_verdict();
    assert!(orders.send("twice").await?.retried);
    client.sent("orders").count(2).await;
    for _ in 0..2 {
        assert_eq!(inbox.receive().await?.text(), Some("twice"));
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_send_is_delayed_and_doubled() -> Result<()> {
    let client = TestClient::new();
    let (orders, mut inbox) = open(&client).await?;
    client.faults().on_send("orders").nth(1).delay(SECOND);
    let start = Instant::now();
    let slow = orders.submit(Message::new("slow")).await?;
    orders.send("fast").await?;
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(inbox.receive().await?.text(), Some("fast"));
    slow.await?;
    assert_eq!(start.elapsed(), SECOND);
    assert_eq!(inbox.receive().await?.text(), Some("slow"));

    client.faults().clear();
    client.faults().on_send("orders").times(1).duplicate();
    orders.send("double").await?;
    client.sent("orders").matching(|sent| sent.message.text() == Some("double")).count(2).await;

    // Longer than the sender waits: it is told, and the message does not turn up later.
    let orders = client.sender("orders").deadline(SECOND).await?;
    client.faults().on_send("orders").delay(HOUR);
    assert_eq!(orders.send("late").await.unwrap_err().kind(), ErrorKind::Timeout);
    client
        .sent("orders")
        .within(2 * HOUR)
        .matching(|sent| sent.message.text() == Some("late"))
        .none_within(2 * HOUR)
        .await;
    assert!(client.tried("orders").matching(|tried| tried.message.text() == Some("late")).all().len() == 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_receipt_is_lost_delayed_and_doubled() -> Result<()> {
    let client = TestClient::new();
    let (orders, mut inbox) = open(&client).await?;
    let faults = client.faults();
    faults.on_receive("orders").nth(1).lose();
    let start = Instant::now();
    orders.send("lost").await?;
    let delivery = inbox.receive().await?;
    assert_eq!(start.elapsed().as_secs(), 30, "its lease has ended");
    delivery.ack();

    faults.on_receive("orders").nth(1).delay(SECOND);
    let start = Instant::now();
    orders.send("slow").await?;
    orders.send("fast").await?;
    assert_eq!(inbox.receive().await?.text(), Some("fast"));
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(inbox.receive().await?.text(), Some("slow"));
    assert_eq!(start.elapsed(), SECOND);

    faults.on_receive("orders").nth(1).duplicate();
    orders.send("double").await?;
    let (first, second) = (inbox.receive().await?, inbox.receive().await?);
    assert_eq!((first.text(), second.text()), (Some("double"), Some("double")));
    assert_eq!((second.ack(), first.ack()), (Answered::Accepted, Answered::Accepted));
    let acked = client.acked("orders").matching(|acked| acked.message.text() == Some("double"));
    acked.count(2).await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_receiver_ends() -> Result<()> {
    let client = TestClient::new();
    let (orders, mut inbox) = open(&client).await?;
    client.faults().on_receive("orders").nth(2).fail(ErrorKind::Unauthorized);
    orders.send("1").await?;
    inbox.receive().await?.ack();
    orders.send("2").await?;
    assert_eq!(inbox.receive().await.unwrap_err().kind(), ErrorKind::Unauthorized);
    let mut next = client.receiver("orders").await?;
    assert_eq!(next.receive().await?.text(), Some("2"));

    // What came together with what ends it is handed out before.
    let (both, mut inbox) = (client.sender("both").await?, client.receiver("both").await?);
    client.faults().on_receive("both").nth(2).fail(ErrorKind::Unauthorized);
    both.send("1").await?;
    both.send("2").await?;
    let first = inbox.receive().await?;
    assert_eq!(first.text(), Some("1"));
    first.ack();
    assert_eq!(inbox.receive().await.unwrap_err().kind(), ErrorKind::Unauthorized);
    drop(inbox);
    assert_eq!(client.receiver("both").await?.receive().await?.text(), Some("2"));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn each_rule_looks_at_every_operation() -> Result<()> {
    let client = TestClient::new();
    let orders = client.sender("orders").await?;
    let first = client.faults().on_send("orders").times(2).fail(ErrorKind::Rejected, Outcome::Rejected);
    let third = client.faults().on_send("orders").nth(3).fail(ErrorKind::Conflict, Outcome::Rejected);
    for kind in [ErrorKind::Rejected, ErrorKind::Rejected, ErrorKind::Conflict] {
        assert_eq!(orders.send("1").await.unwrap_err().kind(), kind);
    }
    orders.send("2").await?;
    assert_eq!((first.count(), third.count()), (2, 1));

    // What another rule has is gone, and not put off.
    client.faults().clear();
    let first = client.faults().on_send("orders").times(3).fail(ErrorKind::Rejected, Outcome::Rejected);
    let third = client.faults().on_send("orders").nth(3).fail(ErrorKind::Conflict, Outcome::Rejected);
    for _ in 0..3 {
        assert_eq!(orders.send("1").await.unwrap_err().kind(), ErrorKind::Rejected);
    }
    orders.send("2").await?;
    assert_eq!((first.count(), third.count()), (3, 0));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_is_meant_may_look_at_the_client() -> Result<()> {
    let client = std::sync::Arc::new(TestClient::new());
    client.sender("orders").await?.send("1").await?;
    let again = client.clone();
    client.sent("orders").matching(move |_| again.sent("orders").all().len() == 1).one().await;
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_ack_is_refused_lost_and_late() -> Result<()> {
    let client = TestClient::new();
    let (orders, mut inbox) = open(&client).await?;
    let mut events = client.events();
    let faults = client.faults();
    orders.send("7").await?;

    faults.on_ack("orders").nth(1).fail(ErrorKind::Internal);
    assert_eq!(inbox.receive().await?.ack(), Answered::Accepted);
    assert_eq!(events.next().await.unwrap().kind, EventKind::AnswerFailed);
    assert_eq!(inbox.flush().await.unwrap_err().kind(), ErrorKind::Internal);
    inbox.flush().await?;

    faults.on_ack("orders").nth(1).fail(ErrorKind::LeaseLost);
    assert_eq!(inbox.receive().await?.ack(), Answered::LeaseLost);
    client.acked("orders").none();

    faults.on_ack("orders").nth(1).lose();
    let start = Instant::now();
    assert_eq!(inbox.receive().await?.ack(), Answered::Accepted);
    let again = inbox.receive().await?;
    assert_eq!(start.elapsed().as_secs(), 30);
    client.acked("orders").one().await;

    faults.on_ack("orders").nth(1).delay(SECOND);
    again.ack();
    let waiting = async || client.stats(&queue_core::Source::new("orders".parse().unwrap())).await;
    assert_eq!(waiting().await?.in_flight, Some(1));
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(waiting().await?.in_flight, Some(0));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_connection_breaks_and_comes_back() -> Result<()> {
    let client = TestClient::new();
    let (orders, mut inbox) = open(&client).await?;
    let mut events = client.events();
    orders.send("1").await?;
    let held = inbox.receive().await?;

    client.faults().on_send("orders").nth(1).disconnect(10 * SECOND);
    let start = Instant::now();
    let (sent, ()) = tokio::join!(orders.send("2"), async {
        assert_eq!(events.next().await.unwrap().kind, EventKind::Disconnected);
        assert_eq!(client.health().state, HealthState::Down);
        assert_eq!(held.ack(), Answered::LeaseLost);
        assert!(timeout(5 * SECOND, inbox.receive()).await.is_err());
    });
    assert!(sent?.retried && start.elapsed() >= 10 * SECOND && start.elapsed() < 30 * SECOND);
    let mut got = Vec::new();
    for _ in 0..2 {
        let delivery = inbox.receive().await?;
        got.push(delivery.text().unwrap().to_owned());
        delivery.ack();
    }
    got.sort();
    assert_eq!(got, ["1", "2"]);
    assert_eq!(events.next().await.unwrap().kind, EventKind::Connected);
    assert_eq!(client.health().state, HealthState::Up);

    client.faults().on_receive("orders").nth(1).disconnect(SECOND);
    client.faults().on_ack("orders").nth(1).disconnect(SECOND);
    orders.send("3").await?;
    assert_eq!(inbox.receive().await?.ack(), Answered::LeaseLost);
    assert_eq!(inbox.receive().await?.ack(), Answered::Accepted);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn chance_comes_from_a_seed_that_a_failure_shows() -> Result<()> {
    let run = async |seed: u64| -> Result<Vec<bool>> {
        let client = TestClient::new();
        client.faults().seed(seed);
        client.faults().on_send("orders").chance(0.5).fail(ErrorKind::Rejected, Outcome::Rejected);
        let orders = client.sender("orders").await?;
        let mut sent = Vec::new();
        for _ in 0..64 {
            sent.push(orders.send("x").await.is_ok());
        }
        client.faults().clear();
        let text = failure(client.sent("payments").one()).await;
        assert!(text.contains(&format!("the seed {seed}: repeat them with `faults().seed({seed})`")), "{text}");
        Ok(sent)
    };
    let first = run(17).await?;
    assert_eq!(first, run(17).await?);
    assert_ne!(first, run(18).await?);
    let stored = first.iter().filter(|stored| **stored).count();
    assert!((16..=48).contains(&stored), "{stored}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_group_and_an_order_by_key_are_recorded_as_well() -> Result<()> {
    let client = TestClient::new();
    let mut billing = client.receiver("topic:orders").group("billing").ordering(Ordering::PerKey).await?;
    let orders = client.sender("topic:orders").await?;
    for n in 0..3 {
        orders.send(Message::new(format!("{n}")).key("k")).await?;
    }
    billing.receive().await?.reject("no");
    billing.receive().await?.ack();
    let dead = client.dead_lettered("topic:orders").one().await;
    assert_eq!(dead.source.group.as_deref(), Some("billing"));
    assert_eq!(client.acked("topic:orders").one().await.message.text(), Some("1"));
    client.sent("orders--billing-dlq").one().await;
    client.sent("topic:orders").count(3).await;
    Ok(())
}
