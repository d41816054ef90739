//! Delays that are longer than SQS knows travel in hops: never early, never lost, seen by nobody on the way.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use queue_core::{Client, ConsumerOptions, Delivery, ErrorKind, Events, Message, Receiver, Source};
use tokio::time::{Instant, timeout};

mod endpoint;

use endpoint::{Endpoint, Faults};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

const SOON: Duration = Duration::from_secs(30);
const CLOSE: Duration = Duration::from_secs(10);
/// Four hops of a second.
const DELAY: Duration = Duration::from_millis(3200);

async fn connect(endpoint: &Endpoint, options: &str) -> Result<Client, Failure> {
    Ok(Client::connect_with(&endpoint.url(&format!("&wait_time=1s{options}")), &[queue_sqs::DRIVER]).await?)
}

async fn next(receiver: &mut Receiver) -> Result<Delivery, Failure> {
    Ok(timeout(SOON, receiver.receive()).await.map_err(|_| "nothing arrived")??)
}

#[tokio::test]
async fn a_long_delay_travels_in_hops_and_holds_up_nobody() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&delay_hops=1s").await?;
    let mut receiver = client.receiver("later").discard_dead_letters().await?;
    let sender = client.sender("later").await?;
    let began = Instant::now();
    let sent = Message::new(vec![0, 255]).id("id-1").key("k").header("n", 7).content_type("x/y");
    sender.send(sent.clone().delay(DELAY)).await?;
    sender.send("now").await?;
    let now = next(&mut receiver).await?;
    assert_eq!(now.text(), Some("now"));
    now.ack();
    let later = next(&mut receiver).await?;
    assert!(began.elapsed() >= DELAY, "after {:?}", began.elapsed());
    assert_eq!((later.payload(), later.get_id(), later.get_key()), (sent.payload(), sent.get_id(), sent.get_key()));
    assert_eq!((later.headers(), later.get_content_type()), (sent.headers(), sent.get_content_type()));
    assert_eq!(later.attempt(), 1);
    later.ack();
    receiver.flush().await?;
    // Each hop is a copy, and deletes what it is a copy of. Four of them, or three where the machine takes the rest of the time.
    let counts = endpoint.counts();
    let sent = counts.of("SendMessageBatch");
    assert_eq!(endpoint.deleted("later").len() as u64, sent);
    assert!((1 + 3..=1 + 4).contains(&sent), "{counts:?}");
    assert_eq!(counts.of("ChangeMessageVisibilityBatch"), 0, "{counts:?}");
    Ok(())
}

#[tokio::test]
async fn a_receiver_without_the_option_keeps_the_delay_too() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let sender = connect(&endpoint, "&delay_hops=1s").await?.sender("kept").await?;
    let mut receiver = connect(&endpoint, "").await?.receiver("kept").discard_dead_letters().await?;
    let began = Instant::now();
    sender.send(Message::new("x").delay(DELAY)).await?;
    let delivery = next(&mut receiver).await?;
    assert!(began.elapsed() >= DELAY, "after {:?}", began.elapsed());
    assert!(delivery.headers().is_empty() && delivery.attempt() == 1);
    Ok(())
}

#[tokio::test]
async fn what_is_longer_is_refused_without_the_option_and_on_fifo_queues() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let minutes = |n: u64| Message::new("x").delay(Duration::from_secs(60 * n));
    let plain = connect(&endpoint, "").await?.sender("plain").await?;
    assert_eq!(plain.capabilities().max_delay, Duration::from_secs(900));
    assert_eq!(plain.send(minutes(16)).await.map_err(|e| e.kind()), Err(ErrorKind::Unsupported));
    let client = connect(&endpoint, "&delay_hops=15m").await?;
    let hopping = client.sender("plain").await?;
    hopping.send(minutes(16)).await?;
    hopping.send(minutes(60 * 24 * 365)).await?;
    let error = hopping.send(minutes(60 * 24 * 366)).await.expect_err("more than a year");
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::Unsupported, Some("31536000s")));
    let fifo = client.sender("plain.fifo").await?;
    assert!(!fifo.capabilities().delayed_send);
    assert_eq!(fifo.send(minutes(1)).await.map_err(|e| e.kind()), Err(ErrorKind::Unsupported));
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_or_early_when_entries_fail_and_answers_are_lost() -> Outcome {
    const COUNT: usize = 20;
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&delay_hops=1s").await?;
    let mut receiver = client.receiver("faulty").lease(Duration::from_secs(3)).discard_dead_letters().await?;
    let sender = client.sender("faulty").await?;
    let began = Instant::now();
    sender.send_batch((0..COUNT).map(|i| Message::new(i.to_string()).delay(DELAY))).await?;
    endpoint.set_faults(Faults { fail_entry: 0.2, lose: 0.1, throttle: 0.1, ..Faults::default() });
    let mut missing: std::collections::BTreeSet<String> = (0..COUNT).map(|i| i.to_string()).collect();
    while !missing.is_empty() {
        let delivery = next(&mut receiver).await?;
        assert!(began.elapsed() >= DELAY, "after {:?}", began.elapsed());
        missing.remove(delivery.text().unwrap_or_default());
        delivery.ack();
    }
    assert!(endpoint.counts().fault("fail_entry") > 0, "nothing failed");
    Ok(())
}

#[tokio::test]
async fn a_receiver_that_closes_finishes_its_hops() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&delay_hops=1s").await?;
    let mut receiver = client.receiver("closing").discard_dead_letters().await?;
    assert!(receiver.next().now_or_never().is_none());
    on_its_way(&endpoint, &client, "closing").await?;
    let report = receiver.close(CLOSE).await;
    assert!(report.is_clean(), "{report:?}");
    comes_once(&endpoint, &client, "closing").await
}

#[tokio::test]
async fn a_consumer_that_is_dropped_finishes_its_hops() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&delay_hops=1s").await?;
    drop(client.sender("dropped").await?);
    let url = endpoint.url("&wait_time=1s").parse()?;
    let broker = (queue_sqs::DRIVER.connect)(url, Events::new()).await?;
    let consumer = broker.consumer(&Source::new("dropped".parse()?), &ConsumerOptions::default()).await?;
    let asked = poll_fn(|cx| Poll::Ready(consumer.poll_receive(cx, NonZeroUsize::MIN, &mut Vec::new()))).await;
    assert!(asked.is_pending());
    on_its_way(&endpoint, &client, "dropped").await?;
    drop(consumer);
    comes_once(&endpoint, &client, "dropped").await
}

/// Sends a message with a long delay, and waits until the copy that a receiver makes of it is on its way, for a while.
async fn on_its_way(endpoint: &Endpoint, client: &Client, queue: &str) -> Outcome {
    client.sender(queue).await?.send(Message::new("x").delay(Duration::from_secs(8))).await?;
    let sends = endpoint.counts().of("SendMessageBatch");
    endpoint.set_faults(Faults { delay: 1.0, late_by: Duration::from_secs(2), ..Faults::default() });
    until(|| endpoint.counts().of("SendMessageBatch") > sends).await
}

async fn comes_once(endpoint: &Endpoint, client: &Client, queue: &str) -> Outcome {
    endpoint.set_faults(Faults::default());
    let mut receiver = client.receiver(queue).discard_dead_letters().await?;
    next(&mut receiver).await?.ack();
    assert!(timeout(DELAY, receiver.receive()).await.is_err(), "it came twice");
    Ok(())
}

/// Waits until it is so.
async fn until(is_so: impl Fn() -> bool) -> Outcome {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    Ok(timeout(SOON, wait).await.map_err(|_| "it did not become so")?)
}

#[tokio::test]
async fn a_hop_that_fails_shows_in_health_until_one_succeeds() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&delay_hops=1s").await?;
    let mut receiver = client.receiver("sick").discard_dead_letters().await?;
    client.sender("sick").await?.send(Message::new("x").delay(DELAY)).await?;
    let received = tokio::spawn(async move { receiver.receive().await.map(|d| d.text().map(str::to_owned)) });
    endpoint.set_faults(Faults { fail_entry: 1.0, ..Faults::default() });
    until(|| client.health().problems.iter().any(|p| p.contains("long delay"))).await?;
    endpoint.set_faults(Faults::default());
    until(|| client.health().is_up()).await?;
    assert_eq!(timeout(SOON, received).await???.as_deref(), Some("x"));
    Ok(())
}

/// What others received early and gave up lies among the dead letters, and hops there no more.
#[tokio::test]
async fn what_amazon_moved_to_the_dead_letters_waits_for_nothing() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&delay_hops=1s").await?;
    client.receiver("moved").max_deliveries(1).await?.close(CLOSE).await;
    client.sender("moved").await?.send(Message::new("x").delay(Duration::from_secs(3600))).await?;
    let sqs = endpoint.client();
    let url = sqs.get_queue_url().queue_name("moved").send().await?.queue_url.unwrap_or_default();
    let mut dead = client.receiver("moved-dlq").max_deliveries(100).discard_dead_letters().await?;
    // More often than the policy of the queue allows.
    for _ in 0..30 {
        endpoint.pass(Duration::from_secs(2));
        sqs.receive_message().queue_url(&url).visibility_timeout(1).send().await?;
    }
    let delivery = next(&mut dead).await?;
    assert_eq!((delivery.text(), delivery.headers().len()), (Some("x"), 0));
    delivery.ack();
    Ok(())
}

/// Whoever is another client sees the message early, with what says when it is due.
#[tokio::test]
async fn another_client_sees_when_it_is_due() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let sender = connect(&endpoint, "&delay_hops=1s").await?.sender("seen").await?;
    sender.send(Message::new("x").header("tenant", "acme").delay(Duration::from_secs(3600))).await?;
    endpoint.pass(Duration::from_secs(1));
    let sqs = endpoint.client();
    let url = sqs.get_queue_url().queue_name("seen").send().await?.queue_url.unwrap_or_default();
    let got = sqs.receive_message().queue_url(url).message_attribute_names("All").send().await?;
    let message = got.messages.unwrap_or_default().pop().ok_or("no message")?;
    assert_eq!(message.body(), Some("x"));
    let attributes = message.message_attributes.unwrap_or_default();
    let due = attributes.get("anyqueue-due").and_then(|a| a.string_value()).ok_or("no time")?;
    let due: f64 = due.parse()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    assert!((3500.0..=3600.0).contains(&(due - now)), "{due}");
    assert!(attributes.contains_key("tenant"));
    Ok(())
}
