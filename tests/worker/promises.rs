//! What brokers promise for answers, time and life, seen by handlers.

use std::collections::{BTreeSet, HashSet};
use std::panic::panic_any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyqueue::worker::{Failure, Job, Worker};
use anyqueue::{ErrorKind, Message, dead_letter};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use crate::place::{LEASE, Place, run};
use crate::running::Running;
use crate::{Outcome, WANTED};

/// How long nothing has to come until nothing is expected.
const QUIET: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(50);

/// A retry is not early, counts, and holds up nothing.
pub(crate) fn retry(place: Arc<Place>) -> Outcome {
    run(async move {
        let delay = Duration::from_secs(3);
        let queue = place.queue("retry");
        let client = place.client().await?;
        let names = std::iter::once("late".to_owned()).chain((0..20).map(|n| n.to_string()));
        client.sender(&*queue).await?.send_batch(names).await?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let logging = log.clone();
        let worker = Worker::new(client.receiver(&*queue).await?).concurrency(2);
        let mut running = Running::start(worker, move |job: Job| {
            let name = job.text().unwrap_or_default().to_owned();
            logging.lock().push((name.clone(), job.attempt(), Instant::now()));
            async move {
                match (&*name, job.attempt()) {
                    ("late", 1) => Err(Failure::retry_after(delay, "not yet")),
                    _ => Ok(()),
                }
            }
        });
        running.until(|counts| counts.processed == 21).await;
        let counts = running.stop().await?;
        assert_eq!((counts.processed, counts.failed), (21, 1));
        let log = log.lock();
        let late: Vec<_> = log.iter().filter(|(name, ..)| name == "late").collect();
        assert_eq!(late.iter().map(|(_, attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2]);
        assert!(late[1].2 - late[0].2 >= delay, "it came after {:?}", late[1].2 - late[0].2);
        let others = log.iter().filter(|(name, _, at)| name != "late" && *at < late[1].2).count();
        assert_eq!(others, 20, "that went on meanwhile");
        Ok(())
    })
}

/// Of A to E, with C and E bad, exactly C and E are dead letters, and nothing comes to the next worker.
pub(crate) fn exactly(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("exactly");
        let keeper = place.client().await?;
        let client = place.client().await?;
        client.sender(&*queue).await?.send_batch(["A", "B", "C", "D", "E"]).await?;
        let worker = Worker::new(client.receiver(&*queue).await?).concurrency(5);
        let mut running = Running::start(worker, |job: Job| async move {
            // Answered out of order.
            let name = job.text().unwrap_or_default();
            sleep(Duration::from_millis(u64::from(b'F' - name.as_bytes()[0]) * 10)).await;
            if matches!(name, "C" | "E") { Err(Failure::permanent(format!("{name} is bad"))) } else { Ok(()) }
        });
        running.until(|counts| counts.processed + counts.dead_lettered == 5).await;
        let counts = running.stop().await?;
        assert_eq!((counts.processed, counts.failed, counts.dead_lettered), (3, 2, 2));
        client.close(LEASE).await;

        let client = place.client().await?;
        let again = Running::start(Worker::new(client.receiver(&*queue).await?), |_: Job| async {});
        let mut dead = client.receiver(format!("{queue}-dlq")).discard_dead_letters().await?;
        let mut names = BTreeSet::new();
        for _ in 0..2 {
            let letter = dead.receive().await?;
            let name = letter.text().unwrap_or_default().to_owned();
            let text = |header| letter.headers().get(header).and_then(|value| value.as_str()).map(str::to_owned);
            assert_eq!(text(dead_letter::REASON), Some(format!("{name} is bad")));
            assert_eq!(text(dead_letter::ORIGIN), Some(queue.clone()));
            assert_eq!(letter.headers().get(dead_letter::ATTEMPTS).and_then(|n| n.as_int()), Some(1));
            letter.ack_confirmed().await?;
            names.insert(name);
        }
        assert_eq!(names, BTreeSet::from(["C".to_owned(), "E".to_owned()]));
        assert!(timeout(QUIET, dead.receive()).await.is_err(), "a third dead letter");
        assert_eq!(again.stop().await?.processed, 0);
        keeper.close(LEASE).await;
        Ok(())
    })
}

/// One in ten fails, one in ten panics; all are processed, and the counts say what was.
pub(crate) fn all_arrive(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("arrive");
        let client = place.client().await?;
        let messages = 200;
        client.sender(&*queue).await?.send_batch((0..messages).map(|n| n.to_string())).await?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seeing = seen.clone();
        let receiver = client.receiver(&*queue).backoff(SHORT, SHORT).await?;
        let mut running = Running::start(Worker::new(receiver).concurrency(16), move |job: Job| {
            let seen = seeing.clone();
            async move {
                let number: u64 = job.text().unwrap_or_default().parse()?;
                match (number % 10, job.attempt()) {
                    (3, 1) => return Err(Failure::temporary("once")),
                    (7, 1) => panic_any(WANTED),
                    _ => seen.lock().push(number),
                }
                Ok(())
            }
        });
        running.until(|counts| counts.processed >= messages).await;
        let counts = running.stop().await?;
        assert_eq!((counts.processed, counts.failed, counts.panicked), (messages, messages / 5, messages / 10));
        assert_eq!((counts.dead_lettered, counts.lost), (0, 0));
        let mut seen = std::mem::take(&mut *seen.lock());
        seen.sort_unstable();
        assert_eq!(seen, (0..messages).collect::<Vec<_>>());
        Ok(())
    })
}

/// What is delayed is not worked on early; where nothing can be delayed, nothing is sent.
pub(crate) fn delay(place: Arc<Place>) -> Outcome {
    run(async move {
        let delay = Duration::from_secs(2);
        let queue = place.queue("delay");
        let client = place.client().await?;
        let receiver = client.receiver(&*queue).await?;
        let sender = client.sender(&*queue).await?;
        let begun = Instant::now();
        let sent = sender.send(Message::new("later").delay(delay)).await;
        if !sender.capabilities().delayed_send {
            assert_eq!(sent.unwrap_err().kind(), ErrorKind::Unsupported);
            return Ok(());
        }
        sent?;
        let mut running = Running::start(Worker::new(receiver), move |_: Job| async move {
            assert!(begun.elapsed() >= delay, "it came after {:?}", begun.elapsed());
        });
        running.until(|counts| counts.processed + counts.failed == 1).await;
        assert_eq!(running.stop().await?.failed, 0);
        Ok(())
    })
}

/// What is past its time is not worked on; where that cannot be, nothing is sent.
pub(crate) fn expired(place: Arc<Place>) -> Outcome {
    run(async move {
        let ttl = Duration::from_secs(1);
        let queue = place.queue("expired");
        let client = place.client().await?;
        let receiver = client.receiver(&*queue).await?;
        receiver.control().pause();
        let sender = client.sender(&*queue).await?;
        let sent = sender.send(Message::new("old").ttl(ttl)).await;
        if !sender.capabilities().ttl {
            assert_eq!(sent.unwrap_err().kind(), ErrorKind::Unsupported);
            return Ok(());
        }
        sent?;
        sleep(ttl * 2).await;
        sender.send("fresh").await?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seeing = seen.clone();
        receiver.control().resume();
        let mut running = Running::start(Worker::new(receiver), move |job: Job| {
            seeing.lock().push(job.text().unwrap_or_default().to_owned());
            async {}
        });
        running.until(|counts| counts.processed >= 1).await;
        running.stop().await?;
        assert_eq!(*seen.lock(), ["fresh"]);
        Ok(())
    })
}

/// What hurries is worked on first; where nothing can, nothing is sent.
pub(crate) fn priority(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("priority");
        let client = place.client().await?;
        let (mut sending, mut receiving) = (client.sender(&*queue), client.receiver(&*queue).prefetch(1));
        for (name, value) in place.priorities() {
            (sending, receiving) = (sending.native(*name, *value), receiving.native(*name, *value));
        }
        let sender = sending.await?;
        for n in 0..8 {
            let message = Message::new(n.to_string());
            let sent = sender.send(if n < 4 { message } else { message.priority(9) }).await;
            if n >= 4 && !sender.capabilities().priority {
                assert_eq!(sent.unwrap_err().kind(), ErrorKind::Unsupported);
                return Ok(());
            }
            sent?;
        }
        let seen = Arc::new(Mutex::new(Vec::new()));
        let seeing = seen.clone();
        let mut running = Running::start(Worker::new(receiving.await?).concurrency(1), move |job: Job| {
            seeing.lock().push(job.text().unwrap_or_default().to_owned());
            async {}
        });
        running.until(|counts| counts.processed == 8).await;
        running.stop().await?;
        let mut seen = seen.lock().clone();
        assert_eq!(seen[..4], ["4", "5", "6", "7"], "{seen:?}");
        seen.sort();
        assert_eq!(seen, ["0", "1", "2", "3", "4", "5", "6", "7"]);
        Ok(())
    })
}

/// A handler of three leases is the only one of its message.
pub(crate) fn long(place: Arc<Place>) -> Outcome {
    run(async move {
        let lease = Duration::from_secs(2);
        let queue = place.queue("long");
        let client = place.client().await?;
        client.sender(&*queue).await?.send("long").await?;
        let (calls, calling) = {
            let calls = Arc::new(Mutex::new(Vec::new()));
            (calls.clone(), calls)
        };
        let worker = Worker::new(client.receiver(&*queue).lease(lease).await?).concurrency(4);
        let mut running = Running::start(worker, move |job: Job| {
            calling.lock().push(job.attempt());
            async move { sleep(lease * 3).await }
        });
        running.until(|counts| counts.processed >= 1).await;
        sleep(lease).await;
        let counts = running.stop().await?;
        assert_eq!((counts.processed, counts.lost, &**calls.lock()), (1, 0, &[1][..]));
        Ok(())
    })
}

/// One of two ends, twice, while it waits; the other goes on with everything.
pub(crate) fn one_of_two(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("two");
        let client = place.client().await?;
        let seen = Arc::new(Mutex::new(HashSet::new()));
        let start = async || {
            let seen = seen.clone();
            let worker = Worker::new(client.receiver(&*queue).await?).concurrency(4);
            Outcome::Ok(Running::start(worker, move |job: Job| {
                seen.lock().insert(job.text().unwrap_or_default().to_owned());
                async {}
            }))
        };
        let (one, other) = (start().await?, start().await?);
        let sender = client.sender(&*queue).await?;
        sender.send_batch((0..50).map(|n| n.to_string())).await?;
        crate::place::until(|| seen.lock().len() == 50).await;
        one.control.stop();
        let first = one.stop().await?;
        sender.send_batch((50..100).map(|n| n.to_string())).await?;
        crate::place::until(|| seen.lock().len() == 100).await;
        let second = other.stop().await?;
        assert!(second.processed >= 50, "{second:?}");
        assert!(first.processed + second.processed >= 100, "{first:?}, {second:?}");
        Ok(())
    })
}

/// Thirty workers, one after the other, on one client: none leaves threads or open files behind.
pub(crate) fn lives(place: Arc<Place>) -> Outcome {
    run(async move {
        let queue = place.queue("lives");
        let client = place.client().await?;
        let sender = client.sender(&*queue).await?;
        let life = async || {
            let mut running = Running::start(Worker::new(client.receiver(&*queue).await?), |_: Job| async {});
            sender.send("one").await?;
            running.until(|counts| counts.processed == 1).await;
            running.stop().await.map(drop)
        };
        for _ in 0..5 {
            life().await?;
        }
        let before = open_things()?;
        for _ in 0..25 {
            life().await?;
        }
        // What ends in the background has ended soon.
        let mut after = open_things()?;
        let begun = Instant::now();
        while after.0 > before.0 + 5 || after.1 > before.1 + 5 {
            assert!(begun.elapsed() < Duration::from_secs(60), "threads and files: {before:?}, then {after:?}");
            sleep(SHORT).await;
            after = open_things()?;
        }
        Ok(())
    })
}

/// How many threads and files this process has.
fn open_things() -> Outcome<(usize, usize)> {
    Ok((std::fs::read_dir("/proc/self/task")?.count(), std::fs::read_dir("/proc/self/fd")?.count()))
}
