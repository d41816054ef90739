//! Processes that are killed, by us or by a message.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyqueue::{Client, Message};
use tokio::time::{sleep, timeout};

use crate::Outcome;
use crate::child::{Diary, POISON, Process};
use crate::place::{LEASE, Place, run};

/// Unless a receiver is told otherwise.
const MAX_DELIVERIES: usize = 5;
/// How long nothing has to come until nothing more is expected.
const QUIET: Duration = Duration::from_secs(2);
/// A process that lives for so long is not killed any more.
const LIFE: Duration = Duration::from_secs(25);

fn faults() -> usize {
    std::env::var("FAULTS").ok().and_then(|faults| faults.parse().ok()).unwrap_or(3)
}

/// The names of all dead letters.
async fn dead(client: &Client, queue: &str) -> Outcome<Vec<String>> {
    let mut receiver = client.receiver(format!("{queue}-dlq")).discard_dead_letters().await?;
    let mut names = Vec::new();
    // The first may take as long as joining a group does.
    let mut wait = LEASE;
    while let Ok(letter) = timeout(wait, receiver.receive()).await {
        let letter = letter?;
        names.push(letter.text().unwrap_or_default().to_owned());
        letter.ack_confirmed().await?;
        wait = QUIET;
    }
    Ok(names)
}

pub(crate) fn again_and_again(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("killed");
        let diary = Diary::new(&queue);
        let client = place.client().await?;
        let messages = if place.slow { 1000 } else { 3000 };
        let names: HashSet<String> = (0..messages).map(|n| format!("m-{n}")).collect();
        let sender = client.sender(&*queue).await?;
        for n in 0..messages / 100 {
            sender.send_batch((0..100).map(|i| Message::new(format!("m-{}", n * 100 + i)))).await?;
        }
        for kill in 0..faults() {
            let mut process = Process::start(&place.url, &queue, diary.path(), 16)?;
            let due = messages * (kill + 1) / (faults() + 1);
            while diary.names("ends").iter().collect::<HashSet<_>>().len() < due {
                assert!(!process.has_ended()?, "the worker ended by itself");
                sleep(Duration::from_millis(5)).await;
            }
            process.kill()?;
        }
        let mut process = Process::start(&place.url, &queue, diary.path(), 16)?;
        while diary.names("ends").into_iter().collect::<HashSet<_>>() != names {
            assert!(!process.has_ended()?, "the worker ended by itself");
            sleep(Duration::from_millis(20)).await;
        }
        assert!(process.end()?, "the last worker did not end well");
        let (begun, ended) = (diary.names("begins").len(), diary.names("ends").len());
        eprintln!("{}: {messages} messages, {} kills: {begun} begun, {ended} ended", place.name, faults());
        let dead = dead(&client, &queue).await?;
        assert!(dead.is_empty(), "{} dead letters, such as {}", dead.len(), dead[0]);
        Ok(())
    })
}

/// Its neighbours, which are lost with it each time, are not to blame.
pub(crate) fn poison(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("poison");
        let diary = Diary::new(&queue);
        let client = place.client().await?;
        let sender = client.sender(&*queue).await?;
        let neighbours: HashSet<String> = (0..20).map(|n| format!("m-{n}")).collect();
        sender.send_batch(std::iter::once(POISON.to_owned()).chain(neighbours.iter().cloned())).await?;
        // Until one lives for longer than anything stays away.
        let mut process = loop {
            let mut process = Process::start(&place.url, &queue, diary.path(), 4)?;
            let ended = async {
                while !process.has_ended()? {
                    sleep(Duration::from_millis(20)).await;
                }
                Outcome::Ok(())
            };
            match timeout(LIFE, ended).await {
                Ok(ended) => ended?,
                Err(_) => break process,
            }
            let begun = diary.names("begins");
            assert!(begun.len() < 200, "it never ends: {begun:?}");
        };
        let ended: HashSet<_> = diary.names("ends").into_iter().collect();
        assert_eq!(ended, neighbours, "what was processed");
        let dead = dead(&client, &queue).await?;
        assert_eq!(dead, [POISON], "the dead letters");
        assert!(process.end()?, "the last worker did not end well");
        let killed = diary.names("begins").iter().filter(|name| *name == POISON).count();
        eprintln!("{}: {killed} processes killed by a message of {MAX_DELIVERIES} deliveries", place.name);
        assert!((MAX_DELIVERIES..=MAX_DELIVERIES + 3).contains(&killed), "{killed}");
        Ok(())
    })
}

pub(crate) fn told_to_end(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("told");
        let diary = Diary::new(&queue);
        let client = place.client().await?;
        let sender = client.sender(&*queue).await?;
        let names: HashSet<String> = (0..500).map(|n| format!("m-{n}")).collect();
        sender.send_batch(names.iter().cloned()).await?;
        while diary.names("ends").len() < names.len() {
            let before = diary.names("ends").len();
            let mut process = Process::start(&place.url, &queue, diary.path(), 4)?;
            while diary.names("ends").len() < (before + 100).min(names.len()) {
                assert!(!process.has_ended()?, "the worker ended by itself");
                sleep(Duration::from_millis(5)).await;
            }
            assert!(process.end()?, "a worker did not end well");
        }
        // Each exactly once: nothing that was begun was left.
        let mut begun = diary.names("begins");
        begun.sort_unstable();
        let twice: Vec<_> = begun.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| &pair[0]).collect();
        assert!(twice.is_empty(), "begun twice: {twice:?}");
        assert_eq!(diary.names("ends").into_iter().collect::<HashSet<_>>(), names);
        Ok(())
    })
}
