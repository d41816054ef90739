//! Faults of a real broker of the tests' own: it is killed, frozen, blocked, and closes connections.

mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{
    Case, PATIENCE, connect, consumer, producer, queue, receive, receive_count, run, send, send_all, soon, text,
    unique, until,
};
use futures::FutureExt;
use futures::future::select_all;
use queue_amqp::DRIVER;
use queue_core::{
    Address, Broker, Client, Completion, ConsumerOptions, Declare, Endpoint, Entry, ErrorKind, EventKind, Events,
    HealthState, Message, OnUnknown, Outcome, Source, Topology,
};
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

/// A port that the brokers of other tests do not use.
const PORT: &str = "5692";
/// How late RabbitMQ writes down that a queue exists, with room: killed earlier it loses the queue that was made last.
const WRITTEN: Duration = Duration::from_secs(2);

fn main() {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => { vec![$(Case(stringify!($name), |_| alone($name()).boxed_local())),*] };
    }
    run(
        common::URL,
        cases![
            killing_the_broker_loses_nothing_confirmed,
            tokens_of_a_lost_connection_touch_nothing,
            connections_closed_by_the_server_come_back,
            a_blocked_broker_is_an_error_in_time_and_gets_nothing_that_was_refused,
            a_thousand_senders_share_two_channels,
            a_frozen_broker_is_an_error_in_time,
            a_subscription_that_was_given_up_keeps_no_message,
            a_connection_whose_channels_are_all_in_use_stays,
            a_full_queue_holds_up_delays_until_it_has_room,
            a_delayed_message_survives_a_kill_right_behind_its_confirm,
        ],
    );
}

/// One fault at a time.
async fn alone(case: impl Future<Output = ()>) {
    static ONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _one = ONE.lock().await;
    brokers(&["up", "rabbitmq"]).await;
    let result = std::panic::AssertUnwindSafe(case).catch_unwind().await;
    brokers(&["down", "rabbitmq"]).await;
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

async fn brokers(arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(root.join("scripts/brokers"))
        .args(arguments)
        .env("ANYQUEUE_RABBITMQ_PORT", PORT)
        .env("ANYQUEUE_BROKERS_DIR", Path::new(env!("CARGO_TARGET_TMPDIR")).join("amqp-faults"))
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn tool(arguments: &[&str]) -> String {
    brokers(&[&["tool", "rabbitmq"], arguments].concat()).await
}

fn url() -> String {
    format!("amqp://guest:guest@127.0.0.1:{PORT}?heartbeat=1s&operation_timeout=5s&max_backoff=500ms")
}

async fn connect_with(events: Events) -> Arc<dyn Broker> {
    let endpoint: Endpoint = url().parse().unwrap();
    (DRIVER.connect)(endpoint, events).await.unwrap()
}

fn numbered(count: usize) -> Vec<Message> {
    (0..count).map(|n| Message::new(n.to_string())).collect()
}

async fn restart() {
    brokers(&["kill", "rabbitmq"]).await;
    brokers(&["start", "rabbitmq"]).await;
}

async fn killing_the_broker_loses_nothing_confirmed() {
    let broker = connect(&url()).await.unwrap();
    let address = queue(&broker, "kill").await;
    sleep(WRITTEN).await;
    let sending = Arc::new(AtomicBool::new(true));
    let sender = producer(&broker, &address).await;
    let sent = tokio::spawn({
        let sending = sending.clone();
        async move {
            let (mut confirmed, mut unknown, mut next) = (BTreeSet::new(), 0, 0_u32);
            while sending.load(Ordering::Relaxed) {
                let names: Vec<_> = (next..next + 100).map(|n| n.to_string()).collect();
                next += 100;
                let verdicts = send(&sender, names.iter().cloned().map(Message::new).collect()).await;
                let mut refused = false;
                for (name, verdict) in names.into_iter().zip(verdicts) {
                    match verdict {
                        None => drop(confirmed.insert(name)),
                        Some(error) => {
                            assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
                            unknown += usize::from(error.outcome() == Outcome::Unknown);
                            refused |= error.outcome() == Outcome::NotSent;
                        }
                    }
                }
                if refused {
                    sleep(Duration::from_millis(20)).await;
                }
            }
            (confirmed, unknown)
        }
    });
    let receiver = consumer(&broker, &address).await;
    let received = Arc::new(parking_lot::Mutex::new(BTreeSet::new()));
    let reader = tokio::spawn({
        let (receiver, received) = (receiver.clone(), received.clone());
        async move {
            while let Ok(batch) = receive(&receiver).await {
                for one in batch {
                    // What the ack does not reach comes again.
                    if receiver.ack(&[one.token]).stale.is_empty() {
                        received.lock().insert(text(&one));
                    }
                }
            }
        }
    });
    for round in 1..=3 {
        let before = received.lock().len();
        until("messages flow", async || received.lock().len() > before + 1000).await;
        restart().await;
        eprintln!("restart {round}");
    }
    let before = received.lock().len();
    until("messages flow again", async || received.lock().len() > before + 1000).await;
    sending.store(false, Ordering::Relaxed);
    let (confirmed, unknown) = soon(sent).await.unwrap();
    until("everything confirmed arrives", async || confirmed.is_subset(&received.lock())).await;
    eprintln!("{} confirmed, {unknown} unknown, {} received", confirmed.len(), received.lock().len());
    receiver.close(Instant::now() + PATIENCE).await;
    soon(reader).await.unwrap();
}

async fn tokens_of_a_lost_connection_touch_nothing() {
    let events = Events::new();
    let broker = connect_with(events.clone()).await;
    let address = queue(&broker, "stale").await;
    sleep(WRITTEN).await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(10)).await;
    let old = receive_count(&receiver, 10).await;
    assert!(receiver.ack(&[old[9].token]).stale.is_empty());
    receiver.flush().await.unwrap();
    let mut heard = events.listen();

    brokers(&["kill", "rabbitmq"]).await;
    until("health is red", async || broker.health().state == HealthState::Down).await;
    let start = Instant::now();
    let verdict = send(&sender, numbered(1)).await.remove(0).unwrap();
    assert_eq!((verdict.kind(), verdict.outcome()), (ErrorKind::Connection, Outcome::NotSent));
    assert!(start.elapsed() < Duration::from_secs(1));
    assert!(!receiver.holds(old[0].token));
    let tokens: Vec<_> = old.iter().map(|r| r.token).collect();
    assert_eq!(receiver.ack(&tokens).stale.len(), 10);
    brokers(&["start", "rabbitmq"]).await;

    let new = receive_count(&receiver, 9).await;
    assert!(new.iter().all(|r| r.attempt == 2), "{:?}", new.iter().map(|r| r.attempt).collect::<Vec<_>>());
    assert_eq!(receiver.ack(&tokens).stale.len(), 10);
    assert!(new.iter().all(|r| receiver.holds(r.token)));
    for one in &new[..4] {
        assert!(receiver.ack(&[one.token]).stale.is_empty());
    }
    receiver.flush().await.unwrap();
    assert_eq!(receiver.close(Instant::now() + PATIENCE).await.unanswered, 5);
    let other = consumer(&broker, &address).await;
    let left: BTreeSet<_> = receive_count(&other, 5).await.iter().map(text).collect();
    assert_eq!(left, new[4..].iter().map(text).collect());
    until("health is green", async || broker.health().is_up()).await;
    let mut seen = (0, 0);
    while seen.0 < 2 || seen.1 < 2 {
        match soon(heard.next()).await.unwrap().kind {
            EventKind::Disconnected => seen.0 += 1,
            EventKind::Connected => seen.1 += 1,
            other => panic!("{other:?}"),
        }
    }
}

async fn connections_closed_by_the_server_come_back() {
    let broker = connect(&url()).await.unwrap();
    let address = queue(&broker, "closed").await;
    let topic = Address::topic(&unique("closed")).unwrap();
    broker.declare(&Topology::from_iter([Entry::new(topic.clone())])).await.unwrap();
    let (sender, teller) = (producer(&broker, &address).await, producer(&broker, &topic).await);
    let receiver = consumer(&broker, &address).await;
    let anonymous = broker.consumer(&Source::new(topic.clone()), &ConsumerOptions::default()).await.unwrap();
    // Questions whose answer is lost with the connection are asked again.
    let done = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (broker, done) = (broker.clone(), done.clone());
        async move {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let address = queue(&broker, "asked").await;
                broker.stats(&Source::new(address.clone())).await.unwrap();
                broker.purge(&address).await.unwrap();
                broker.delete(&address).await.unwrap();
                rounds += 1;
            }
            rounds
        }
    });
    for round in 0..3 {
        tool(&["close_all_connections", "test"]).await;
        until("a message goes through", async || send(&sender, numbered(1)).await[0].is_none()).await;
        let got = soon(receive(&receiver)).await.unwrap().remove(0);
        receiver.ack(&[got.token]);
        let name = round.to_string();
        // A topic keeps nothing for a receiver without a group until it is back.
        let heard = async || {
            let told = send(&teller, vec![Message::new(name.clone())]).await[0].is_none();
            told && tokio::time::timeout(Duration::from_millis(50), receive(&anonymous)).await.is_ok()
        };
        until("the subscriber hears again", heard).await;
        broker.ping().await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    assert!(asking.await.unwrap() > 3);
}

async fn a_blocked_broker_is_an_error_in_time_and_gets_nothing_that_was_refused() {
    const DEADLINE: Duration = Duration::from_secs(2);
    let client = Client::connect_with(&url(), &[DRIVER]).await.unwrap();
    let mut heard = client.events();
    let name = unique("blocked");
    let sender = client.sender(&name).deadline(DEADLINE).on_unknown(OnUnknown::Fail).await.unwrap();
    sender.send("before").await.unwrap();
    tool(&["set_vm_memory_high_watermark", "absolute", "1MB"]).await;
    // The first message meets the alarm: it may arrive.
    let start = Instant::now();
    let error = sender.send("first").await.unwrap_err();
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown), "{error}");
    assert!(error.to_string().contains("blocked by the broker"), "{error}");
    assert!((1.5..4.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
    while soon(heard.next()).await.unwrap().kind != EventKind::Blocked {}
    assert_eq!(client.health().state, HealthState::Down);
    for round in 0..2 {
        let start = Instant::now();
        let error = sender.send(format!("refused {round}")).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Throttled, Outcome::NotSent), "{error}");
        assert!(error.to_string().contains("the broker blocks publishers: low on memory"), "{error}");
        assert!((1.5..4.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
    }
    // The other connection goes on.
    client.ping().await.unwrap();
    tool(&["set_vm_memory_high_watermark", "0.4"]).await;
    until("health is green", async || client.health().is_up()).await;
    sender.send("after").await.unwrap();
    let mut receiver = client.receiver(&name).await.unwrap();
    let mut got = Vec::new();
    while got.last().is_none_or(|last| last != "after") {
        let delivery = soon(receiver.receive()).await.unwrap();
        got.push(delivery.text().unwrap().to_owned());
        delivery.ack();
    }
    assert_eq!(got, ["before", "first", "after"]);
    client.close(PATIENCE).await;
}

async fn a_thousand_senders_share_two_channels() {
    const QUEUES: usize = 20;
    const SENDERS: usize = 1000;
    let client = Client::connect_with(&url(), &[DRIVER]).await.unwrap();
    let names: Vec<_> = (0..QUEUES).map(|_| unique("shared")).collect();
    let mut sending = Vec::new();
    for n in 0..SENDERS {
        let declare = if n < QUEUES { Declare::Create } else { Declare::Assume };
        let sender = client.sender(&names[n % QUEUES]).declare(declare).await.unwrap();
        sending.push(async move {
            for part in 0..3 {
                sender.send(format!("{n}.{part}")).await.unwrap();
            }
            sender
        });
    }
    let senders = soon(futures::future::join_all(sending)).await;
    let (connections, channels) = (list("list_connections", "user").await, list("list_channels", "confirm").await);
    assert_eq!(connections.len(), 2, "{connections:?}");
    assert_eq!(channels.iter().filter(|confirm| *confirm == "true").count(), 2, "{channels:?}");
    // One for the questions to the broker may be open.
    assert!(channels.len() <= 3, "{channels:?}");
    let mut got = BTreeSet::new();
    for name in &names {
        let mut receiver = client.receiver(name).await.unwrap();
        for _ in 0..3 * SENDERS / QUEUES {
            let delivery = soon(receiver.receive()).await.unwrap();
            got.insert(delivery.text().unwrap().to_owned());
            delivery.ack();
        }
        receiver.close(PATIENCE).await;
    }
    assert_eq!(got.len(), 3 * SENDERS);
    drop(senders);
    client.close(PATIENCE).await;
}

/// What the server tells of its connections or channels.
async fn list(command: &str, column: &str) -> Vec<String> {
    let text = tool(&["--quiet", command, column]).await;
    text.lines().map(str::to_owned).filter(|line| line != column).collect()
}

async fn a_frozen_broker_is_an_error_in_time() {
    let broker = connect(&url()).await.unwrap();
    let address = queue(&broker, "frozen").await;
    let sender = producer(&broker, &address).await;
    let receiver = consumer(&broker, &address).await;
    send_all(&sender, numbered(1)).await;
    let held = receive_count(&receiver, 1).await;
    receiver.ack(&[held[0].token]);
    brokers(&["freeze", "rabbitmq"]).await;
    let start = Instant::now();
    let (done, verdict) = Completion::new(1);
    sender.send(numbered(1), done);
    let source = Source::new(address.clone());
    let (ping, flush, stats) = tokio::join!(broker.ping(), receiver.flush(), broker.stats(&source));
    let kinds = [ping.unwrap_err().kind(), flush.unwrap_err().kind(), stats.unwrap_err().kind()];
    assert!(kinds.iter().all(|k| matches!(k, ErrorKind::Timeout | ErrorKind::Connection)), "{kinds:?}");
    let failure = soon(verdict).await.unwrap_err().failures().remove(0).1;
    assert_eq!((failure.kind(), failure.outcome()), (ErrorKind::Connection, Outcome::Unknown));
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    assert_eq!(broker.health().state, HealthState::Down);
    let report = receiver.close(Instant::now() + Duration::from_secs(1)).await;
    assert!(!report.is_clean());
    brokers(&["thaw", "rabbitmq"]).await;
    until("health is green", async || broker.health().is_up()).await;
    until("a message goes through", async || send(&sender, numbered(1)).await[0].is_none()).await;
}

async fn a_subscription_that_was_given_up_keeps_no_message() {
    const COUNT: usize = 600;
    // Longer than one question may take, and shorter than silence that ends the connection, with the default options.
    const FROZEN: Duration = Duration::from_secs(13);
    let broker = connect(&format!("amqp://guest:guest@127.0.0.1:{PORT}")).await.unwrap();
    let address = queue(&broker, "given-up").await;
    let receiver = consumer(&broker, &address).await;
    let source = Source::new(address.clone());
    receiver.set_paused(true);
    until("paused", async || broker.stats(&source).await.unwrap().consumers == Some(0)).await;
    send_all(&producer(&broker, &address).await, numbered(COUNT)).await;
    brokers(&["freeze", "rabbitmq"]).await;
    receiver.set_paused(false);
    sleep(FROZEN).await;
    brokers(&["thaw", "rabbitmq"]).await;
    let mut seen = BTreeSet::new();
    while seen.len() < COUNT {
        for one in soon(receive(&receiver)).await.unwrap() {
            assert!(receiver.ack(&[one.token]).stale.is_empty());
            seen.insert(text(&one));
        }
    }
    assert!(broker.health().is_up(), "the connection lasted: {:?}", broker.health());
    receiver.flush().await.unwrap();
    assert_eq!(broker.stats(&source).await.unwrap().consumers, Some(1));
    assert!(receiver.close(Instant::now() + PATIENCE).await.is_clean());
    until("nobody consumes", async || broker.stats(&source).await.unwrap().consumers == Some(0)).await;
    assert_eq!(broker.stats(&source).await.unwrap().ready, Some(0));
}

async fn a_connection_whose_channels_are_all_in_use_stays() {
    tool(&["eval", "application:set_env(rabbit, channel_max, 16)."]).await;
    let broker = connect(&url()).await.unwrap();
    let address = queue(&broker, "channels").await;
    let sender = producer(&broker, &address).await;
    let mut inboxes = Vec::new();
    let error = loop {
        let opened = broker.consumer(&Source::new(address.clone()), &ConsumerOptions::default()).await;
        match opened {
            Ok(inbox) => inboxes.push(inbox),
            Err(error) => break error,
        }
        assert!(inboxes.len() <= 16);
    };
    assert_eq!((error.kind(), error.context("limit")), (ErrorKind::Throttled, Some("16")), "{error:?}");
    let error = broker.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled, "{error:?}");
    // Long enough for the loss of a connection to be seen.
    sleep(Duration::from_secs(1)).await;
    assert!(broker.health().is_up(), "{:?}", broker.health());
    send_all(&sender, numbered(1)).await;
    let (received, ..) = soon(select_all(inboxes.iter().map(|inbox| Box::pin(receive(inbox))))).await;
    assert_eq!(received.unwrap().len(), 1);
    for inbox in inboxes {
        inbox.close(Instant::now() + PATIENCE).await;
    }
    soon(broker.ping()).await.unwrap();
    // Numbers lost to errors are another matter: they come back with another connection.
    let missing = Source::new(Address::queue(&unique("missing")).unwrap());
    for _ in 0..40 {
        let error = soon(broker.stats(&missing)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    }
}

/// The server hands on 32 messages of a level at a time, and tries one that was refused again after three to six minutes;
/// here, after five to ten seconds.
async fn a_full_queue_holds_up_delays_until_it_has_room() {
    const HANDED_ON: usize = 32;
    tool(&["eval", "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, 5000)."]).await;
    let broker = connect(&url()).await.unwrap();
    let full = Address::queue(&unique("full")).unwrap();
    let mut entry = Entry::new(full.clone());
    entry.native.insert("x-max-length".into(), "40".into());
    entry.native.insert("x-overflow".into(), "reject-publish".into());
    broker.declare(&Topology::from_iter([entry])).await.unwrap();
    let other = queue(&broker, "other").await;
    let client = Client::connect_with(&url(), &[DRIVER]).await.unwrap();
    let (to_full, to_other) = (client.sender(&full).await.unwrap(), client.sender(&other).await.unwrap());
    let filler = producer(&broker, &full).await;
    until("it is full", async || send(&filler, numbered(1)).await[0].is_some()).await;

    let delay = Duration::from_millis(100);
    for _ in 0..HANDED_ON + 4 {
        soon(to_full.send(Message::new("late").delay(delay))).await.unwrap();
    }
    soon(to_other.send(Message::new("behind").delay(delay))).await.unwrap();
    let inbox = consumer(&broker, &other).await;
    assert!(timeout(Duration::from_secs(3), receive(&inbox)).await.is_err(), "documented otherwise");
    // Another level goes on.
    soon(to_other.send(Message::new("beside").delay(2 * delay))).await.unwrap();
    assert_eq!(text(&receive_count(&inbox, 1).await[0]), "beside");

    let start = Instant::now();
    broker.purge(&full).await.unwrap();
    assert_eq!(text(&receive_count(&inbox, 1).await[0]), "behind");
    eprintln!("went on {:?} after there was room", start.elapsed());
    let source = Source::new(full.clone());
    let all = Some(HANDED_ON as u64 + 4);
    until("nothing is lost", async || broker.stats(&source).await.unwrap().ready == all).await;
}

/// The ladder is made for this message, and the server has not written down the queue that was made last.
async fn a_delayed_message_survives_a_kill_right_behind_its_confirm() {
    let broker = connect(&url()).await.unwrap();
    let address = queue(&broker, "delayed").await;
    let client = Client::connect_with(&url(), &[DRIVER]).await.unwrap();
    let sender = client.sender(&address).await.unwrap();
    soon(sender.send(Message::new("later").delay(Duration::from_secs(3)))).await.unwrap();
    restart().await;
    let inbox = consumer(&broker, &address).await;
    let start = Instant::now();
    assert_eq!(text(&receive_count(&inbox, 1).await[0]), "later");
    eprintln!("it came {:?} after the start", start.elapsed());
}
