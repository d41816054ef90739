//! What it costs, in requests: Amazon charges for each.
//!
//! Where time has to pass, the clock is one that runs on whenever everybody waits, the endpoint too: no machine is too
//! slow for a lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use queue_core::{Answered, Client, Delivery, Message, Receiver};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

mod endpoint;

use endpoint::Endpoint;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

async fn connect(endpoint: &Endpoint, options: &str) -> Result<Client, Failure> {
    Ok(Client::connect_with(&endpoint.url(options), &[queue_sqs::DRIVER]).await?)
}

/// Exactly so many messages.
async fn collect(receiver: &mut Receiver, count: usize) -> Result<Vec<Delivery>, Failure> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(timeout(Duration::from_secs(60), receiver.receive_batch(count - all.len())).await??);
    }
    Ok(all)
}

/// A thousand tasks that call plain `send`, and one receiver with a backlog: a tenth of a request to send a message, a
/// tenth to receive it, a tenth to delete it, and what is left over where a batch was not full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_costs_a_third_of_a_request_in_all() -> Outcome {
    const TASKS: usize = 1000;
    const EACH: usize = 10;
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&wait_time=1s").await?;
    let sender = client.sender("steady").await?;
    let mut receiver = client.receiver("steady").discard_dead_letters().await?;
    let before = endpoint.counts();
    let mut sending = JoinSet::new();
    for _ in 0..TASKS {
        let sender = sender.clone();
        sending.spawn(async move {
            for i in 0..EACH {
                sender.send(i.to_string()).await?;
            }
            Ok::<_, queue_core::Error>(())
        });
    }
    let mut left = TASKS * EACH;
    while left > 0 {
        let batch = timeout(Duration::from_secs(60), receiver.receive_batch(left.min(256))).await??;
        left -= batch.len();
        batch.ack();
    }
    receiver.flush().await?;
    while let Some(sent) = sending.join_next().await {
        sent??;
    }
    let counts = endpoint.counts().since(&before);
    let each = counts.about_messages() as f64 / (TASKS * EACH) as f64;
    println!("{each:.3} requests per message: {:?}", counts.requests);
    assert!(each <= 0.33, "{each:.3} requests per message: {:?}", counts.requests);
    Ok(())
}

/// Over ten minutes.
#[tokio::test(start_paused = true)]
async fn an_idle_receiver_polls_three_times_a_minute() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "").await?;
    let mut receiver = client.receiver("idle").discard_dead_letters().await?;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(endpoint.counts().of("ReceiveMessage"), 0, "nobody has asked");
    let _asking = tokio::spawn(async move { receiver.receive().await });
    let before = endpoint.counts();
    let began = Instant::now();
    sleep(Duration::from_secs(600)).await;
    let counts = endpoint.counts().since(&before);
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let each = counts.requests.values().sum::<u64>() as f64 / minutes;
    println!("{each:.2} requests a minute: {:?}", counts.requests);
    assert!(each <= 3.1, "{each:.2} requests a minute: {:?}", counts.requests);
    assert!(each >= 2.9, "the polls did not wait with the clock: {each:.2} a minute");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_handler_of_three_visibility_timeouts_sees_its_message_once() -> Outcome {
    let lease = Duration::from_secs(30);
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&wait_time=1s").await?;
    let seen = Arc::new(AtomicUsize::new(0));
    let mut receivers = JoinSet::new();
    for _ in 0..2 {
        let mut receiver = client.receiver("slow").lease(lease).discard_dead_letters().await?;
        let seen = seen.clone();
        receivers.spawn(async move {
            loop {
                let delivery = receiver.receive().await?;
                seen.fetch_add(1, Ordering::Relaxed);
                sleep(3 * lease).await;
                assert_eq!(delivery.attempt(), 1);
                delivery.ack_confirmed().await?;
            }
            #[allow(unreachable_code, reason = "it works until it fails or is aborted")]
            Ok::<(), queue_core::Error>(())
        });
    }
    client.sender("slow").await?.send("x").await?;
    // As long again, in which it would come back.
    if let Ok(Some(ended)) = timeout(6 * lease, receivers.join_next()).await {
        ended??;
    }
    assert_eq!(seen.load(Ordering::Relaxed), 1);
    let changes = endpoint.counts().of("ChangeMessageVisibilityBatch");
    assert!(changes >= 3, "the lease was extended {changes} times");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_thousand_messages_are_kept_by_a_hundred_requests_an_interval() -> Outcome {
    const HELD: usize = 1000;
    const INTERVALS: u32 = 10;
    let lease = Duration::from_secs(30);
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&wait_time=1s").await?;
    let sender = client.sender("held").await?;
    sender.send_batch((0..HELD).map(|i| i.to_string())).await?;
    let mut receiver = client.receiver("held").lease(lease).prefetch(HELD).discard_dead_letters().await?;
    let held = collect(&mut receiver, HELD).await?;
    let before = endpoint.counts();
    sleep(lease * INTERVALS / 2).await;
    let changes = endpoint.counts().since(&before).of("ChangeMessageVisibilityBatch");
    let most = u64::from(INTERVALS) * (HELD as u64 / 10);
    println!("{changes} requests to extend {HELD} leases in {INTERVALS} intervals of half a lease");
    assert!(changes <= most, "{changes} requests, {most} at most");
    for delivery in held {
        assert_eq!(delivery.attempt(), 1);
        delivery.ack();
    }
    receiver.flush().await?;
    assert_eq!(endpoint.deleted("held").len(), HELD, "leases were lost");
    Ok(())
}

/// The next poll starts with the answer that came too late, and not when leases are looked after the next time.
#[tokio::test(start_paused = true)]
async fn a_lease_that_ran_out_makes_room_with_its_answer() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&wait_time=1s").await?;
    let sender = client.sender("late").await?;
    let lease = Duration::from_secs(30);
    let opening = client.receiver("late").lease(lease).max_handler_time(lease).prefetch(1);
    let mut receiver = opening.discard_dead_letters().await?;
    sender.send_batch(["first", "second"]).await?;
    let first = receiver.receive().await?;
    first.lost().await;
    assert_eq!(first.ack(), Answered::LeaseLost);
    let since = Instant::now();
    receiver.receive().await?.ack();
    assert!(since.elapsed() < Duration::from_secs(1), "the next message took {:?}", since.elapsed());
    Ok(())
}

/// What waits in a receiver that nobody asks any more keeps its lease, on both kinds of queue.
#[tokio::test(start_paused = true)]
async fn what_was_fetched_and_not_asked_for_keeps_its_lease() -> Outcome {
    const KEYS: usize = 1000;
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint, "&wait_time=1s").await?;
    for queue in ["waiting", "waiting.fifo"] {
        let opening = client.receiver(queue).lease(Duration::from_secs(30)).prefetch(1024);
        let mut receiver = opening.discard_dead_letters().await?;
        let sender = client.sender(queue).await?;
        // Once, or nothing would be fetched.
        assert!(timeout(Duration::from_secs(1), receiver.receive()).await.is_err());
        for n in 0..3 {
            let batch = (0..KEYS).map(|key| Message::new(n.to_string()).key(format!("key-{key}")));
            sender.send_batch(batch).await?;
            sleep(Duration::from_secs(70)).await;
        }
        for _ in 0..3 * KEYS {
            let delivery = timeout(Duration::from_secs(60), receiver.receive()).await??;
            assert_eq!(delivery.attempt(), 1, "{queue}: {:?} of {:?}", delivery.text(), delivery.get_key());
            delivery.ack();
        }
    }
    Ok(())
}
