//! Putting dead letters back, where it does not go as it should.

use std::collections::BTreeSet;
use std::time::Duration;

use queue_core::{Client, Delivery, ErrorKind, Message, Outcome, Redriven, Source, memory};
use tokio::time::{Instant, advance, sleep, timeout};

async fn connect(url: &str) -> Client {
    Client::connect_with(url, &[memory::DRIVER]).await.unwrap()
}

/// Dead letters of `orders` that another program made: they say nothing of themselves.
async fn bury(client: &Client, bodies: &[&str]) {
    let sender = client.sender("orders-dlq").await.unwrap();
    sender.send_batch(bodies.iter().map(|body| Message::new((*body).to_owned()))).await.unwrap();
}

/// Acknowledges what comes from `orders` until nothing does for a while.
async fn drain(client: &Client) -> Vec<String> {
    let mut inbox = client.receiver("orders").await.unwrap();
    let mut bodies = Vec::new();
    while let Ok(delivery) = timeout(Duration::from_secs(1), inbox.receive()).await {
        let delivery = delivery.unwrap();
        bodies.push(delivery.text().unwrap().to_owned());
        delivery.ack();
    }
    bodies
}

#[tokio::test(start_paused = true)]
async fn what_has_no_place_to_go_back_to_stays_and_is_told() {
    let client = connect("memory://").await;
    bury(&client, &["a", "b", "c"]).await;
    let redriven = client.redrive("orders").await.unwrap();
    assert_eq!(redriven.moved, 0);
    assert!(!redriven.failed.is_empty() && redriven.failed.iter().all(|e| e.kind() == ErrorKind::NotFound));
    assert_eq!(redriven.stopped.map(|e| e.kind()), Some(ErrorKind::NotFound));
    drop(client.sender("orders").await.unwrap());
    assert_eq!(client.redrive("orders").await.unwrap().moved, 3);
    assert_eq!(drain(&client).await, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn where_the_count_is_exact_nothing_is_waited_for() {
    let client = connect("memory://").await;
    drop(client.sender("orders").await.unwrap());
    let began = Instant::now();
    bury(&client, &["a"]).await;
    for moved in [1, 0] {
        assert_eq!(client.redrive("orders").await.unwrap().moved, moved);
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

/// Both queues have room for two: copies wait until there is room behind what waits already.
async fn full_origin() -> Client {
    let client = connect("memory://?capacity=2&lease=2s").await;
    client.sender("orders").await.unwrap().send_batch(["x", "y"]).await.unwrap();
    bury(&client, &["a", "b"]).await;
    client
}

#[tokio::test(start_paused = true)]
async fn dead_letters_stay_leased_for_as_long_as_a_pass_takes() {
    let client = full_origin().await;
    let redrive = tokio::spawn(client.redrive("orders").into_future());
    let graveyard = Source::new("orders-dlq".parse().unwrap());
    let held = timeout(Duration::from_secs(60), async {
        while client.stats(&graveyard).await.unwrap().in_flight != Some(2) {
            sleep(Duration::from_millis(1)).await;
        }
    });
    held.await.expect("both are held");
    let mut thief = client.receiver("orders-dlq").discard_dead_letters().await.unwrap();
    let stolen = timeout(Duration::from_secs(20), thief.receive()).await;
    assert!(stolen.is_err(), "{stolen:?}");
    let all = tokio::spawn(async move { drain(&client).await });
    assert_eq!(redrive.await.unwrap().unwrap().moved, 2);
    assert_eq!(all.await.unwrap(), ["x", "y", "a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_is_dropped_loses_nothing() {
    let client = full_origin().await;
    timeout(Duration::from_secs(5), client.redrive("orders").into_future()).await.expect_err("there is no room");
    let again = client.clone();
    let redrive = tokio::spawn(async move {
        // What the dropped pass held comes back by itself.
        let mut moved = 0;
        while moved < 2 {
            moved += again.redrive("orders").await.unwrap().moved;
            sleep(Duration::from_millis(100)).await;
        }
    });
    let mut all = BTreeSet::new();
    let arrived = timeout(Duration::from_secs(3600), async {
        while all.len() < 4 {
            all.extend(drain(&client).await);
        }
    });
    arrived.await.expect("all are still there");
    redrive.await.unwrap();
    assert_eq!(all, ["a", "b", "x", "y"].map(str::to_owned).into());
}

#[tokio::test]
async fn each_dead_letter_is_looked_at_once() {
    // Several fetches.
    let bodies: Vec<String> = (0..1000).map(|n| n.to_string()).collect();
    let client = connect("memory://").await;
    drop(client.sender("orders").await.unwrap());
    bury(&client, &bodies.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let (seen, mut see) = tokio::sync::mpsc::unbounded_channel();
    let redriven = client.redrive("orders").filter(move |message| {
        let body = message.text().unwrap().to_owned();
        let is_even = body.parse::<u32>().unwrap().is_multiple_of(2);
        seen.send(body).unwrap();
        is_even
    });
    let redriven = redriven.await.unwrap();
    assert_eq!((redriven.moved, redriven.kept), (500, 500));
    let mut looked_at = Vec::new();
    while let Some(body) = see.recv().await {
        looked_at.push(body);
    }
    assert_eq!(looked_at, bodies);
}

#[tokio::test]
async fn a_pass_that_holds_too_many_stops_and_gives_them_back() {
    const COUNT: usize = 10_001;
    let client = connect("memory://").await;
    drop(client.sender("orders").await.unwrap());
    bury(&client, &vec!["x"; COUNT]).await;
    let redriven = client.redrive("orders").filter(|_| false).await.unwrap();
    assert_eq!((redriven.moved, redriven.kept), (0, 10_000));
    let error = redriven.stopped.expect("it was too much");
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::TooLarge, Some("10000 messages, 67108864 bytes")));
    let redriven = client.redrive("orders").await.unwrap();
    assert_eq!((redriven.moved, redriven.stopped.is_none()), (COUNT as u64, true));
}

/// Two dead letters of one FIFO group: who holds the first keeps the second from everybody.
async fn blocked_group(client: &Client) -> Delivery {
    let sender = client.sender("orders-dlq.fifo").await.unwrap();
    sender.send_batch(["a", "b"].map(|body| Message::new(body).key("k"))).await.unwrap();
    let mut thief = client.receiver("orders-dlq.fifo").prefetch(1).discard_dead_letters().await.unwrap();
    thief.receive().await.unwrap()
}

#[track_caller]
fn assert_short(redriven: &Redriven, told: &str, came: &str) {
    let error = redriven.stopped.as_ref().expect("more were told of");
    assert_eq!(error.kind(), ErrorKind::Timeout);
    assert_eq!((error.context("told"), error.context("came")), (Some(told), Some(came)));
}

#[tokio::test(start_paused = true)]
async fn a_pass_to_which_nothing_comes_ends_and_says_so() {
    // However short the lease is, and however often it is renewed.
    for url in ["memory://?profile=sqs", "memory://?profile=sqs&lease=2s"] {
        let client = connect(url).await;
        let queue = client.sender("orders.fifo").await.unwrap();
        let held = blocked_group(&client).await;
        let began = Instant::now();
        let redriven = timeout(Duration::from_secs(300), client.redrive("orders.fifo").into_future());
        let redriven = redriven.await.expect("it ends").unwrap();
        assert_eq!(redriven.moved, 0);
        assert_short(&redriven, "1", "0");
        assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
        held.ack();
        assert_eq!(client.redrive("orders.fifo").await.unwrap().moved, 1);
        drop(queue);
    }
}

#[tokio::test(start_paused = true)]
async fn what_dies_during_a_pass_is_left_and_does_not_count() {
    let client = connect("memory://?profile=sqs").await;
    let mut inbox = client.receiver("orders.fifo").await.unwrap();
    let held = blocked_group(&client).await;
    client.sender("orders.fifo").await.unwrap().send(Message::new("c").key("other")).await.unwrap();
    inbox.receive().await.unwrap().reject("no");
    inbox.flush().await.unwrap();
    let killer = tokio::spawn(async move {
        while let Ok(delivery) = inbox.receive().await {
            // Time is told in milliseconds.
            std::thread::sleep(Duration::from_millis(2));
            delivery.reject("again");
        }
    });
    let redriven = client.redrive("orders.fifo").await.unwrap();
    killer.abort();
    assert_eq!((redriven.moved, redriven.later), (1, 1));
    assert_short(&redriven, "2", "1");
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_was_lost_is_not_counted_as_moved() {
    let client = full_origin().await;
    let redrive = tokio::spawn(client.redrive("orders").into_future());
    sleep(Duration::from_secs(1)).await;
    let mut thief = client.receiver("orders-dlq").discard_dead_letters().await.unwrap();
    // The process sleeps for longer than a lease, and another takes what it held.
    advance(Duration::from_secs(10)).await;
    assert_eq!(thief.receive_batch(2).await.unwrap().len(), 2);
    assert_eq!(drain(&client).await, ["x", "y", "a", "b"]);
    let redriven = redrive.await.unwrap().unwrap();
    let kinds: Vec<_> = redriven.failed.iter().map(|e| (e.kind(), e.outcome())).collect();
    assert_eq!((redriven.moved, kinds), (0, vec![(ErrorKind::LeaseLost, Outcome::Unknown); 2]));
}

#[tokio::test]
async fn what_no_receiver_takes_is_refused() {
    let client = connect("memory://?lease=0s").await;
    let error = client.redrive("orders").await.unwrap_err();
    assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some("lease")));
}
