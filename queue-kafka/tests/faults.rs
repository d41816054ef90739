//! What the adapter promises when its broker is killed or frozen. Starts a broker of its own with `scripts/brokers`, so
//! that it disturbs nobody; runs where `ANYQUEUE_TEST_KAFKA_URL` says that brokers can run at all.

mod common;

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use common::*;
use queue_core::{Completion, ErrorKind, EventKind, Events, HealthState, Message, Outcome, ProducerOptions};
use tokio::time::{Instant, sleep};

const PORT: &str = "27092";
const URL: &str = "kafka://127.0.0.1:27092";

fn main() {
    if url().is_none() {
        return run(&TESTS);
    }
    let listed = std::env::args().any(|a| a == "--list");
    if !listed {
        brokers("up");
    }
    // Ends the process, so the broker is taken down by the last test.
    run(&TESTS);
}

const TESTS: [Test; 1] = [("confirmed_messages_survive_and_closes_end_in_time", all)];

/// One broker for all: the faults come one after the other.
fn all() {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    let outcome = std::panic::catch_unwind(|| {
        println!("-- every_confirmed_message_arrives_though_the_broker_is_killed_twice");
        every_confirmed_message_arrives_though_the_broker_is_killed_twice();
        println!("-- health_goes_red_and_green_again");
        health_goes_red_and_green_again();
        println!("-- a_message_to_a_dead_broker_fails_at_its_deadline");
        a_message_to_a_dead_broker_fails_at_its_deadline();
        println!("-- a_close_ends_in_time_with_the_broker_frozen");
        a_close_ends_in_time_with_the_broker("freeze");
        println!("-- a_close_ends_in_time_with_the_broker_killed");
        a_close_ends_in_time_with_the_broker("kill");
    });
    brokers("down");
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn brokers(command: &str) {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let dir = format!("{}/kafka-faults", env!("CARGO_TARGET_TMPDIR"));
    let status = Command::new(format!("{root}/scripts/brokers"))
        .args([command, "kafka"])
        .env("ANYQUEUE_KAFKA_PORT", PORT)
        .env_remove("ANYQUEUE_KAFKA_CONTROLLER_PORT")
        .env("ANYQUEUE_BROKERS_DIR", dir)
        .env("ANYQUEUE_BROKERS_MODE", "native")
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "brokers {command}");
}

async fn brokers_async(command: &'static str) {
    tokio::task::spawn_blocking(move || brokers(command)).await.unwrap();
}

fn every_confirmed_message_arrives_though_the_broker_is_killed_twice() {
    block_on(async {
        let rig = Rig::at(URL, 4).await;
        let producer = rig.producer().await;
        let consumer = rig.consumer().await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let sender = tokio::spawn(async move {
            let (mut confirmed, mut unknown, mut number) = (BTreeSet::new(), 0, 0_u32);
            while !*stopped.borrow() {
                let range = number..number + 200;
                number += 200;
                let (done, verdict) = Completion::new(200);
                producer.send(numbered(range.clone()), done);
                let failed: BTreeSet<usize> = match verdict.await {
                    Ok(_) => BTreeSet::new(),
                    Err(error) => error.failures().iter().map(|(i, _)| *i).collect(),
                };
                unknown += failed.len();
                confirmed.extend(range.enumerate().filter(|(i, _)| !failed.contains(i)).map(|(_, n)| n.to_string()));
                sleep(Duration::from_millis(2)).await;
            }
            (confirmed, unknown)
        });
        let faults = tokio::spawn(async move {
            for _ in 0..2 {
                sleep(Duration::from_secs(2)).await;
                brokers_async("kill").await;
                brokers_async("start").await;
            }
            sleep(Duration::from_secs(2)).await;
            stop.send(true).unwrap();
        });
        let (mut seen, mut received, mut late) = (BTreeSet::new(), 0, 0);
        let mut confirmed = None;
        let mut sender = Some(sender);
        let deadline = in_secs(90);
        loop {
            if let Ok(Ok(more)) = tokio::time::timeout(Duration::from_millis(500), some(&*consumer, 256)).await {
                received += more.len();
                seen.extend(texts(&more));
                late += consumer.ack(&more.iter().map(|r| r.token).collect::<Vec<_>>()).stale.len();
            }
            if sender.as_ref().is_some_and(tokio::task::JoinHandle::is_finished) {
                confirmed = Some(sender.take().unwrap().await.unwrap());
            }
            if let Some((confirmed, unknown)) = &confirmed
                && confirmed.is_subset(&seen)
            {
                println!(
                    "{} confirmed, {unknown} failed, {received} received, {} twice, {late} late answers",
                    confirmed.len(),
                    received - seen.len()
                );
                break;
            }
            let missing = confirmed.as_ref().map(|(c, _): &(BTreeSet<String>, usize)| c.difference(&seen).count());
            assert!(Instant::now() < deadline, "missing: {missing:?}");
        }
        faults.await.unwrap();
        consumer.flush().await.unwrap();
        rig.broker.close(in_secs(10)).await;
    });
}

fn health_goes_red_and_green_again() {
    block_on(async {
        let events = Events::new();
        let mut seen = events.listen();
        let broker = connect_with(URL, events).await.unwrap();
        let begun = Instant::now();
        brokers_async("kill").await;
        while broker.health().state != HealthState::Down {
            assert!(begun.elapsed() < Duration::from_secs(20));
            sleep(Duration::from_millis(20)).await;
        }
        println!("red after {:?}", begun.elapsed());
        let error = broker.ping().await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout), "{error:?}");
        let begun = Instant::now();
        brokers_async("start").await;
        while !broker.health().is_up() {
            assert!(begun.elapsed() < Duration::from_secs(30));
            sleep(Duration::from_millis(20)).await;
        }
        println!("green after {:?}", begun.elapsed());
        broker.ping().await.unwrap();
        let mut kinds = Vec::new();
        while let Ok(Some(event)) = tokio::time::timeout(Duration::from_millis(300), seen.next()).await {
            kinds.push(event.kind);
        }
        assert_eq!(kinds, [EventKind::Connected, EventKind::Disconnected, EventKind::Connected]);
        broker.close(in_secs(10)).await;
    });
}

fn a_message_to_a_dead_broker_fails_at_its_deadline() {
    block_on(async {
        let rig = Rig::at(URL, 1).await;
        let mut options = ProducerOptions::default();
        options.deadline = Duration::from_secs(3);
        let producer = rig.broker.producer(&rig.queue, &options).await.unwrap();
        send(&*producer, vec![Message::new("before")]).await;
        let slow = rig.producer().await;
        brokers_async("kill").await;
        let (done, verdict) = Completion::new(1);
        let begun = Instant::now();
        producer.send(vec![Message::new("into the void")], done);
        let (_, error) = verdict.await.unwrap_err().failures().remove(0);
        println!("{:?} {:?} after {:?}", error.kind(), error.outcome(), begun.elapsed());
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Timeout, Outcome::Unknown));
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        // A close waits no longer than it is told, and says what is left.
        let (done, verdict) = Completion::new(3);
        slow.send(numbered(0..3), done);
        let begun = Instant::now();
        let report = slow.close(in_secs(1)).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(report.unconfirmed, 3);
        assert_eq!(verdict.await.unwrap_err().failures()[0].1.outcome(), Outcome::Unknown);
        rig.broker.close(in_secs(1)).await;
        brokers_async("start").await;
    });
}

fn a_close_ends_in_time_with_the_broker(fault: &'static str) {
    block_on(async {
        let rig = Rig::at(URL, 2).await;
        rig.send(numbered(0..10)).await;
        let consumer = rig.consumer().await;
        let got = receive(&*consumer, 10).await;
        brokers_async(fault).await;
        consumer.ack(&got.iter().map(|r| r.token).collect::<Vec<_>>());
        let begun = Instant::now();
        let report = consumer.close(in_secs(2)).await;
        println!("consumer: {:?} {:?}", begun.elapsed(), report);
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(report.errors.len(), 1, "the answers could not be confirmed: {report:?}");
        let begun = Instant::now();
        rig.broker.close(in_secs(2)).await;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        brokers_async(if fault == "freeze" { "thaw" } else { "start" }).await;
        // The messages were not confirmed, so they may come again; they are not lost.
        let rig = Rig { broker: connect_to(URL).await.unwrap(), queue: rig.queue };
        let again = rig.consumer().await;
        println!("nothing comes again: {}", nothing(&*again, Duration::from_secs(15)).await);
        rig.broker.close(in_secs(10)).await;
    });
}
