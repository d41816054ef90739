//! Order by key, and what many handlers gain.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyqueue::worker::{Failure, Job, OrFail, Worker};
use anyqueue::{Client, Message};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::Outcome;
use crate::place::{Place, full, run, until};
use crate::running::Running;

const KEYS: usize = 1000;
/// Rates are measured so often at most.
const TRIES: usize = 5;
const HANDLER: Duration = Duration::from_millis(5);

/// One message in ten fails once.
pub(crate) fn kept(place: Arc<Place>) -> Outcome {
    run(async move {
        let each = if full() { 100 } else { 5 };
        let keys = if place.slow && !full() { KEYS / 5 } else { KEYS };
        let queue = place.ordered("order");
        let client = place.client().await?;
        let short = Duration::from_millis(10);
        let opening = place.in_order(client.receiver(&*queue)).backoff(short, short).prefetch(1024);
        let worker = Worker::new(opening.await?).concurrency(64);
        let sender = client.sender(&*queue).await?;
        for n in 0..each {
            let batch = (0..keys).map(|key| Message::new(n.to_string()).key(format!("key-{key}")));
            sender.send_batch(batch).await?;
        }
        let reached = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
        let reaching = reached.clone();
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let noting = wrong.clone();
        let mut running = Running::start(worker, move |job: Job| {
            let (reached, wrong) = (reaching.clone(), noting.clone());
            async move {
                let key = String::from_utf8(job.get_key().ok_or("no key").or_permanent()?.to_vec())?;
                let number: usize = job.text().unwrap_or_default().parse()?;
                if (number + key.len()).is_multiple_of(10) && job.attempt() == 1 {
                    return Err(Failure::temporary("once"));
                }
                tokio::task::yield_now().await;
                let mut reached = reached.lock();
                let next = reached.entry(key.clone()).or_default();
                if number != *next {
                    wrong.lock().push(format!("{number} of {key} came where {next} was due"));
                }
                *next = number + 1;
                Ok(())
            }
        });
        running.until(|counts| counts.processed >= (keys * each) as u64).await;
        let counts = running.stop().await?;
        assert!(counts.failed > 0, "{counts:?}");
        assert!(wrong.lock().is_empty(), "{} out of order, such as {}", wrong.lock().len(), wrong.lock()[0]);
        assert!(reached.lock().len() == keys && reached.lock().values().all(|reached| *reached == each));
        Ok(())
    })
}

/// While one key waits for its retry, all others go on, and its own do not pass it.
pub(crate) fn waits(place: Arc<Place>) -> Outcome {
    run(async move {
        let delay = Duration::from_secs(3);
        let queue = place.ordered("waits");
        let client = place.client().await?;
        let opening = place.in_order(client.receiver(&*queue)).backoff(delay, delay);
        let worker = Worker::new(opening.await?).concurrency(16);
        let batch = (0..60).map(|n| Message::new(n.to_string()).key(format!("key-{}", n % 20)));
        client.sender(&*queue).await?.send_batch(batch).await?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let logging = log.clone();
        let mut running = Running::start(worker, move |job: Job| {
            let number: u32 = job.text().unwrap_or_default().parse().unwrap_or_default();
            logging.lock().push((number, job.attempt()));
            async move { if (number, job.attempt()) == (7, 1) { Err(Failure::temporary("once")) } else { Ok(()) } }
        });
        running.until(|counts| counts.processed == 60).await;
        running.stop().await?;
        let log = log.lock();
        let place_of = |entry| log.iter().position(|seen| *seen == entry);
        let again = place_of((7, 2)).ok_or("7 did not come again")?;
        assert!(place_of((27, 1)) > Some(again) && place_of((47, 1)) > place_of((27, 1)), "{log:?}");
        let others = log[..again].iter().filter(|(number, _)| number % 20 != 7).count();
        assert_eq!(others, 57, "{log:?}");
        Ok(())
    })
}

/// Messages a second with so many handlers.
async fn rate(client: &Client, queue: &str, handlers: usize, handler: Duration, messages: usize) -> Outcome<f64> {
    let sender = client.sender(queue).await?;
    for _ in 0..messages / 100 {
        sender.send_batch((0..100).map(|n| n.to_string())).await?;
    }
    let worker = Worker::new(client.receiver(queue).prefetch(1024).await?).concurrency(handlers);
    let control = worker.control();
    // From the first message on: what opening takes is not a rate.
    let first = Arc::new(Mutex::new(None));
    let began = first.clone();
    let done = Arc::new(AtomicUsize::new(0));
    let doing = done.clone();
    let served = tokio::spawn(worker.serve(move |_: Job| {
        began.lock().get_or_insert_with(Instant::now);
        let done = doing.clone();
        async move {
            if !handler.is_zero() {
                sleep(handler).await;
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
    }));
    until(|| done.load(Ordering::Relaxed) >= messages).await;
    let took = first.lock().ok_or("nothing came")?.elapsed();
    control.stop();
    let report = served.await?;
    assert!(report.is_clean(), "{report:?}");
    Ok(messages as f64 / took.as_secs_f64())
}

/// Twenty times the rate of one, or 0.8 of what the broker hands out to an empty handler.
pub(crate) fn faster(place: Arc<Place>) -> Outcome {
    run(async move {
        let client = place.client().await?;
        let messages = 2000;
        let mut told = String::new();
        // The machine may be busy with something else.
        for _ in 0..TRIES {
            let one = rate(&client, &place.queue("one"), 1, HANDLER, messages / 5).await?;
            // Before and after: a broker that has just been started gets faster and faster.
            let before = rate(&client, &place.queue("empty"), 64, Duration::ZERO, messages).await?;
            let many = rate(&client, &place.queue("many"), 64, HANDLER, messages).await?;
            let after = rate(&client, &place.queue("empty"), 64, Duration::ZERO, messages).await?;
            let empty = f64::midpoint(before, after);
            told = format!("{one:.0}/s by one handler of 5 ms, {many:.0}/s by 64, {empty:.0}/s by empty ones");
            eprintln!("{}: {told}", place.name);
            let is_bound = matches!(place.name, "memory" | "kafka");
            if many >= 20.0 * one || (!is_bound && many >= 0.8 * empty) {
                return Ok(());
            }
        }
        Err(told.into())
    })
}
