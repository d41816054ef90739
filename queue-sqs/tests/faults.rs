//! A broker that stops answering, on a set of its own.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use queue_core::{Client, EventKind, HealthState};
use tokio::process::Command;
use tokio::time::{Instant, timeout};

mod support;
use support::*;

/// A port that the sets of other tests do not use.
const PORT: &str = "19424";
const MESSAGES: usize = 2000;

fn main() {
    support::main(cases![a_frozen_endpoint_loses_nothing_confirmed_and_recovers]);
}

/// Runs a command of the script that starts brokers.
async fn brokers(command: &str) -> Outcome {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/brokers");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sqs-faults");
    let status = Command::new(script)
        .args([command, "sqs"])
        .env("ANYQUEUE_SQS_PORT", PORT)
        .env("ANYQUEUE_BROKERS_DIR", folder)
        .stdout(std::process::Stdio::null())
        .status()
        .await?;
    if status.success() { Ok(()) } else { Err(format!("scripts/brokers {command} failed").into()) }
}

/// Ends the set, also when a test fails: the thawing comes first, so that nothing stays behind.
async fn with_broker<F: Future<Output = Outcome>>(test: impl FnOnce(String) -> F) -> Outcome {
    brokers("up").await?;
    let url = format!("sqs://127.0.0.1:{PORT}?region=us-east-1&access_key=test&secret_key=test");
    let outcome = timeout(Duration::from_secs(300), test(url)).await.unwrap_or_else(|_| Err("no end".into()));
    let _ = brokers("thaw").await;
    brokers("down").await?;
    outcome
}

async fn a_frozen_endpoint_loses_nothing_confirmed_and_recovers() -> Outcome {
    with_broker(|url| async move {
        // The first answers of a server that has just started take long.
        let early = Client::connect_with(&url, &[queue_sqs::DRIVER]).await?;
        early.sender("frozen").await?.send("early").await?;
        early.delete("frozen").await?;
        early.close(Duration::from_secs(5)).await;

        let url = format!("{url}&wait_time=1s&request_timeout=1s");
        let client = Client::connect_with(&url, &[queue_sqs::DRIVER]).await?;
        let mut events = client.events();
        let sender = client.sender("frozen").await?;
        let mut receiver = client.receiver("frozen").lease(Duration::from_secs(6)).discard_dead_letters().await?;

        let sending = tokio::spawn(async move {
            let mut confirmed = HashSet::new();
            for chunk in 0..MESSAGES / 20 {
                let texts: Vec<_> = (0..20).map(|i| (chunk * 20 + i).to_string()).collect();
                match sender.send_batch(texts.iter().cloned()).await {
                    Ok(_) => confirmed.extend(texts),
                    Err(error) => {
                        let failed: HashSet<_> = error.failures().into_iter().map(|(i, _)| i).collect();
                        confirmed
                            .extend(texts.into_iter().enumerate().filter(|(i, _)| !failed.contains(i)).map(|(_, t)| t));
                    }
                }
            }
            confirmed
        });
        let receiving = tokio::spawn(async move {
            let mut seen = HashSet::new();
            let until = Instant::now() + Duration::from_secs(80);
            while seen.len() < MESSAGES && Instant::now() < until {
                let batch = receiver.receive_batch_within(256, Duration::from_millis(500)).await?;
                for delivery in batch {
                    seen.insert(delivery.text().unwrap_or_default().to_owned());
                    delivery.ack();
                }
            }
            receiver.close(Duration::from_secs(3)).await;
            Ok::<_, Failure>(seen)
        });

        tokio::time::sleep(Duration::from_millis(300)).await;
        brokers("freeze").await?;
        wait_for(&mut events, EventKind::Disconnected).await?;
        assert_eq!(client.health().state, HealthState::Down);
        brokers("thaw").await?;
        wait_for(&mut events, EventKind::Connected).await?;
        assert!(client.health().is_up(), "{:?}", client.health());

        let confirmed = sending.await?;
        let seen = receiving.await??;
        let lost: Vec<_> = confirmed.difference(&seen).collect();
        assert!(lost.is_empty(), "{} of {} confirmed messages were lost", lost.len(), confirmed.len());
        assert_eq!(confirmed.len(), MESSAGES, "sends were to go on after the freeze");
        client.close(Duration::from_secs(3)).await;
        Ok(())
    })
    .await
}

async fn wait_for(events: &mut queue_core::EventStream, kind: EventKind) -> Outcome {
    let found = timeout(Duration::from_secs(90), async {
        while let Some(event) = events.next().await {
            if event.kind == kind {
                return Ok(());
            }
        }
        Err("the events ended".into())
    });
    found.await.map_err(|_| format!("no {kind:?} event"))?
}
