//! What is sent with a delay, and what is retried with one.

use std::time::Duration;

use futures::future::join_all;
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use queue_amqp::DRIVER;
use queue_core::{Address, Client, ErrorKind, Message, Outcome};
use tokio::time::Instant;

use crate::common::{PATIENCE, soon, unique, until};
use crate::native;

/// What a busy machine may add to each stop of a delay.
const SLACK: Duration = Duration::from_millis(1500);

async fn client(url: &str) -> Client {
    Client::connect_with(url, &[DRIVER]).await.unwrap()
}

pub(crate) async fn a_delay_is_kept_to_the_step_of_the_ladder(url: String) {
    let client = client(&url).await;
    let queue = unique("delay");
    let mut inbox = client.receiver(&queue).discard_dead_letters().await.unwrap();
    let sender = client.sender(&queue).await.unwrap();
    // One unit, one stop, many stops, one that is rounded up, and none at all.
    let delays = [1, 100, 101, 800, 3_100, 6_300, 0].map(Duration::from_millis);
    // Makes every level that is needed, so that what is measured is the way.
    join_all(delays.iter().map(|d| sender.send(Message::new("first").delay(*d)))).await;
    for _ in delays {
        soon(inbox.next()).await.unwrap().unwrap().ack();
    }
    let start = Instant::now();
    for sent in join_all(delays.iter().map(|d| sender.send(Message::new(d.as_millis().to_string()).delay(*d)))).await {
        sent.unwrap();
    }
    for _ in delays {
        let delivery = soon(inbox.next()).await.unwrap().unwrap();
        let took = start.elapsed();
        let delay = Duration::from_millis(delivery.text().unwrap().parse().unwrap());
        assert!(took >= delay, "{delay:?} came after {took:?}");
        assert!(took < delay + Duration::from_millis(100) + SLACK, "{delay:?} came after {took:?}");
        assert_eq!(delivery.get_subject(), None);
        assert_eq!(delivery.get_delay(), None);
        delivery.ack();
    }
    client.close(Duration::from_secs(5)).await;
}

pub(crate) async fn names_with_signs_of_routing_keys_reach_their_own_queue(url: String) {
    let client = client(&url).await;
    let base = unique("signs");
    let names = ["a.b", "x.a.b", "#", "*", "a%2Eb", "b"].map(|end| format!("{base}.{end}"));
    for name in &names {
        let sender = client.sender(name).await.unwrap();
        soon(sender.send(Message::new(name.clone()).delay(Duration::from_millis(200)))).await.unwrap();
    }
    for name in &names {
        let mut inbox = client.receiver(name).discard_dead_letters().await.unwrap();
        let delivery = soon(inbox.next()).await.unwrap().unwrap();
        assert_eq!(delivery.text().unwrap(), name);
        delivery.ack();
        let more = inbox.receive_batch_within(1, Duration::from_millis(300)).await.unwrap();
        assert!(more.is_empty(), "a second message came to {name}");
        client.delete(name).await.unwrap();
    }
    client.close(Duration::from_secs(5)).await;
}

pub(crate) async fn what_cannot_be_delayed_is_refused(url: String) {
    let client = client(&url).await;
    let (queue, topic) = (unique("refused"), format!("topic:{}", unique("refused")));
    let sender = client.sender(&queue).await.unwrap();
    let second = Duration::from_secs(1);
    let kind = async |message: Message| {
        let error = soon(sender.send(message)).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotSent);
        error.kind()
    };
    assert_eq!(kind(Message::new("x").delay(second).ttl(second)).await, ErrorKind::Unsupported);
    assert_eq!(kind(Message::new("x").delay(Duration::from_secs(20 * 24 * 3600))).await, ErrorKind::Unsupported);
    let nowhere = Address::queue(&unique("nowhere")).unwrap();
    assert_eq!(kind(Message::new("x").delay(second).to(nowhere)).await, ErrorKind::NotFound);
    let teller = client.sender(&topic).await.unwrap();
    let refused = soon(teller.send(Message::new("x").delay(second))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let elsewhere: Address = topic.parse().unwrap();
    assert_eq!(kind(Message::new("x").delay(second).to(elsewhere)).await, ErrorKind::Unsupported);

    let without = Client::connect_with(&format!("{url}?delay_queues=false"), &[DRIVER]).await.unwrap();
    let refused = soon(without.sender(&queue).await.unwrap().send(Message::new("x").delay(second))).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    // A retry is held back by its receiver then.
    soon(sender.send("again")).await.unwrap();
    let mut inbox = without.receiver(&queue).discard_dead_letters().await.unwrap();
    let start = Instant::now();
    soon(inbox.next()).await.unwrap().unwrap().retry_after(second);
    let again = soon(inbox.next()).await.unwrap().unwrap();
    assert!(start.elapsed() >= second && again.attempt() == 2);
    again.ack();
    client.delete(&queue).await.unwrap();
    client.close(second).await;
    without.close(second).await;
}

pub(crate) async fn a_queue_that_is_gone_holds_up_no_delayed_message(url: String) {
    let client = client(&url).await;
    let (gone, stays) = (unique("gone"), unique("stays"));
    let delay = Duration::from_millis(1500);
    let sender = client.sender(&gone).await.unwrap();
    let marker = unique("marker");
    // More than a queue passes on at a time.
    let sent = (0..40).map(|_| sender.send(Message::new(marker.clone()).delay(delay)));
    soon(join_all(sent)).await.into_iter().for_each(|sent| drop(sent.unwrap()));
    client.delete(&gone).await.unwrap();
    let other = client.sender(&stays).await.unwrap();
    soon(other.send(Message::new("here").delay(delay))).await.unwrap();
    let mut inbox = client.receiver(&stays).discard_dead_letters().await.unwrap();
    soon(inbox.next()).await.unwrap().unwrap().ack();

    // Nothing is lost: it waits aside. Other tests may leave messages there too.
    let broker = client.broker().clone();
    let channel = native(&broker).open_channel().await.unwrap();
    let found = std::cell::Cell::new(0);
    until("what had no queue is kept", async || {
        while let Some(got) =
            channel.basic_get("anyqueue-delay-lost".into(), BasicGetOptions { no_ack: true }).await.unwrap()
        {
            found.set(found.get() + usize::from(got.delivery.data == marker.as_bytes()));
        }
        found.get() == 40
    })
    .await;
    client.delete(&stays).await.unwrap();
    client.close(Duration::from_secs(5)).await;
}

pub(crate) async fn a_retry_is_counted_by_the_library_and_carries_nothing_of_the_brokers(url: String) {
    let client = client(&url).await;
    let queue = unique("retried");
    let mut inbox = client.receiver(&queue).max_deliveries(3).await.unwrap();
    let sender = client.sender(&queue).await.unwrap();
    soon(sender.send(Message::new("x").header("mine", "kept"))).await.unwrap();
    for attempt in 1..=3 {
        let delivery = soon(inbox.next()).await.unwrap().unwrap();
        assert_eq!(delivery.attempt(), attempt);
        assert_eq!(delivery.headers().len(), 1, "{:?}", delivery.headers());
        // The broker notes its own way each time, and only the last one is there.
        let deaths = delivery.native_headers().get("x-death").cloned();
        assert_eq!(deaths.is_some(), attempt > 1, "{deaths:?}");
        delivery.retry_after(Duration::from_millis(300));
    }
    let mut dead = client.receiver(format!("{queue}-dlq")).discard_dead_letters().await.unwrap();
    let letter = soon(dead.next()).await.unwrap().unwrap();
    assert_eq!(letter.headers().get("anyqueue-attempts").and_then(|a| a.as_int()), Some(3));
    assert!(letter.native_headers().get("x-death").is_none(), "{:?}", letter.native_headers());
    letter.ack();
    client.delete(&queue).await.unwrap();
    client.delete(format!("{queue}-dlq")).await.unwrap();
    client.close(Duration::from_secs(5)).await;
}

pub(crate) async fn what_stands_in_the_way_of_a_delay_is_told(url: String) {
    // A virtual host where somebody else took the name of a level: a fresh one is not at hand, so the highest level
    // is taken, which no other test needs.
    let client = client(&url).await;
    let broker = client.broker().clone();
    let channel = native(&broker).open_channel().await.unwrap();
    let name = "anyqueue-delay-23";
    // What an earlier run left.
    channel.queue_delete(name.into(), Default::default()).await.unwrap();
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    channel.queue_declare(name.into(), options, table).await.unwrap();
    let queue = unique("blocked");
    let sender = client.sender(&queue).await.unwrap();
    let error = soon(sender.send(Message::new("x").delay(Duration::from_secs(11 * 24 * 3600)))).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Conflict, Outcome::NotSent), "{error:?}");
    assert_eq!(error.context("queue"), Some(name));
    let channel = native(&broker).open_channel().await.unwrap();
    channel.queue_delete(name.into(), Default::default()).await.unwrap();
    // Mended, the next one goes through.
    soon(sender.send(Message::new("x").delay(Duration::from_secs(11 * 24 * 3600)))).await.unwrap();
    channel.queue_delete(name.into(), Default::default()).await.unwrap();
    client.delete(&queue).await.unwrap();
    client.close(Duration::from_secs(5)).await;
}

pub(crate) async fn a_queue_made_anew_by_another_client_is_found_again(url: String) {
    let (here, there) = (client(&url).await, client(&url).await);
    let queue = unique("anew");
    let sender = here.sender(&queue).await.unwrap();
    let delay = Duration::from_millis(100);
    soon(sender.send(Message::new("first").delay(delay))).await.unwrap();
    there.delete(&queue).await.unwrap();
    let mut inbox = there.receiver(&queue).discard_dead_letters().await.unwrap();
    let end = Instant::now() + PATIENCE;
    let mut sent = 0;
    loop {
        soon(sender.send(Message::new("again").delay(delay))).await.unwrap();
        sent += 1;
        let batch = inbox.receive_batch_within(1, Duration::from_millis(500)).await.unwrap();
        if !batch.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "{sent} delayed messages did not come");
    }
    there.delete(&queue).await.unwrap();
    here.close(Duration::from_secs(5)).await;
    there.close(Duration::from_secs(5)).await;
}

pub(crate) async fn a_missing_part_of_the_ladder_is_made_anew(url: String) {
    let client = client(&url).await;
    let queue = unique("missing");
    let sender = client.sender(&queue).await.unwrap();
    // The level's own time, and a level that no other test needs.
    let (name, delay) = ("anyqueue-delay-20", Duration::from_millis(100 << 20));
    soon(sender.send(Message::new("x").delay(delay))).await.unwrap();
    let broker = client.broker().clone();
    let channel = native(&broker).open_channel().await.unwrap();
    channel.queue_delete(name.into(), Default::default()).await.unwrap();
    // It comes back: the exchange has nowhere to put it.
    soon(sender.send(Message::new("x").delay(delay))).await.unwrap();
    assert_eq!(channel.queue_delete(name.into(), Default::default()).await.unwrap(), 1);
    channel.exchange_delete(name.into(), Default::default()).await.unwrap();
    soon(sender.send(Message::new("x").delay(delay))).await.unwrap();
    assert_eq!(channel.queue_delete(name.into(), Default::default()).await.unwrap(), 1);
    client.delete(&queue).await.unwrap();
    client.close(Duration::from_secs(5)).await;
}

pub(crate) async fn a_retry_on_a_queue_whose_name_leaves_no_room_is_held_back_by_its_receiver(url: String) {
    let client = client(&url).await;
    let queue = unique(&"long".repeat(48));
    assert!((208..=255).contains(&queue.len()), "{}", queue.len());
    let sender = client.sender(&queue).await.unwrap();
    let second = Duration::from_secs(1);
    let error = soon(sender.send(Message::new("x").delay(second))).await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unsupported, Outcome::NotSent), "{error:?}");
    assert!(!sender.capabilities().delayed_send && sender.capabilities().max_delay.is_zero());
    let mut inbox = client.receiver(&queue).discard_dead_letters().await.unwrap();
    assert_eq!(inbox.capabilities().max_retry_delay, Duration::from_secs(20 * 60));
    soon(sender.send("again")).await.unwrap();
    let start = Instant::now();
    soon(inbox.next()).await.unwrap().unwrap().retry_after(second);
    let again = soon(inbox.next()).await.unwrap().unwrap();
    assert!(start.elapsed() >= second && again.attempt() == 2);
    again.ack();
    client.delete(&queue).await.unwrap();
    client.close(second).await;
}
