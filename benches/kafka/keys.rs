//! How fast slow handlers get through one partition: the experiment of Confluent's Parallel Consumer.
//!
//! 10,000 messages lie in one partition, with keys by chance; a handler sleeps up to 5 ms; up to 100 handlers run at once,
//! one per key where the order of keys is kept, and each acknowledges its own message. The time is that from the first
//! message to the last commit.
//!
//! `RUNS` (3) and `KEYS` (`1,2,5,10,20,100,0`; 0 is without order) say what is run, `PREFETCH` (1,000) with how many messages
//! in the receiver.
//!
//! Theirs slept 0, 1, 2, 3 or 4 ms (mean 2) over a consumer that is a mock; ours sleep any time up to 5 ms (mean 2.5) over a
//! real broker.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyqueue::{Client, Delivery, Message, Ordering as Order};
use tokio::sync::Semaphore;

use crate::compare::setting;
use crate::nap::Naps;

const MESSAGES: usize = 10_000;
const CONCURRENCY: usize = 100;
/// The longest sleep of a handler.
const LONGEST: Duration = Duration::from_millis(5);
/// Messages that wait behind one of their key take of the prefetch, and a key of which none is here has no handler: so it is
/// ten times the number of handlers.
const PREFETCH: usize = 1_000;
/// Keys, none without order, and the seconds that Confluent published.
const PUBLISHED: [(usize, f64); 7] =
    [(1, 26.743), (2, 13.576), (5, 5.916), (10, 3.310), (20, 2.242), (100, 2.178), (0, 2.829)];
/// Of the messages without order, which have keys all the same.
const KEYS_WITHOUT_ORDER: usize = 20;

/// What the handlers saw.
struct Book {
    naps: Naps,
    /// The number that is due next, by key.
    next: Vec<AtomicUsize>,
    ordered: bool,
    slept: AtomicU64,
}

impl Book {
    async fn handle(&self, delivery: Delivery) {
        let number = |bytes: &[u8]| std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<usize>().ok());
        let (key, own) = (delivery.get_key().and_then(|key| number(key)), number(delivery.payload()));
        let (Some(key), Some(own)) = (key, own) else { panic!("a message of somebody else") };
        if self.ordered {
            assert_eq!(self.next[key].load(Ordering::Acquire), own, "key {key} is out of order");
        }
        let begun = Instant::now();
        self.naps.sleep(LONGEST.mul_f64(fastrand::f64())).await;
        self.slept.fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        // Not before the handler is done: another one of the key at the same time would see it.
        self.next[key].fetch_add(1, Ordering::AcqRel);
        delivery.ack();
    }
}

/// Prints seconds beside the published ones.
pub(crate) fn compare(url: &str) -> ExitCode {
    let runs = setting("RUNS", 3_usize).max(1);
    let wanted = setting("KEYS", "1,2,5,10,20,100,0".to_owned());
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    println!(
        "{MESSAGES} messages of one partition, handlers of 0 to 5 ms, {CONCURRENCY} at once; median of {runs} (all)"
    );
    println!("{:<10} {:>9} {:>11}  mean sleep", "keys", "seconds", "published");
    let mut slower = 0;
    for keys in wanted.split(',').filter_map(|keys| keys.parse().ok()) {
        let published = PUBLISHED.iter().find(|(own, _)| *own == keys).map(|(_, seconds)| *seconds);
        let mut all: Vec<(f64, f64)> = (0..runs)
            .map(|_| {
                let url = format!("{url}?partitions=1");
                runtime
                    .block_on(async { tokio::spawn(async move { once(&url, keys).await }).await })
                    .expect("it ends well")
            })
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        let name = if keys == 0 { "no order".to_owned() } else { keys.to_string() };
        let theirs = published.map_or("-".to_owned(), |seconds| format!("{seconds:.1}"));
        let rest: Vec<_> = all.iter().map(|(seconds, _)| format!("{seconds:.2}")).collect();
        println!("{name:<10} {:>9.2} {theirs:>11}  {:.2} ms  ({})", all[runs / 2].0, all[runs / 2].1, rest.join(", "));
        slower += usize::from(published.is_some_and(|published| all[runs / 2].0 > published));
    }
    if slower == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Seconds of one run, and the mean sleep in milliseconds.
async fn once(url: &str, keys: usize) -> (f64, f64) {
    let client = anyqueue::connect(url).await.unwrap();
    let queue = format!("bench-keys-{}-{}", std::process::id(), fastrand::u32(..));
    let ordered = keys > 0;
    let keys = if ordered { keys } else { KEYS_WITHOUT_ORDER };
    fill(&client, &queue, keys).await;
    let book = Arc::new(Book {
        naps: Naps::new(),
        next: (0..keys).map(|_| AtomicUsize::new(0)).collect(),
        ordered,
        slept: AtomicU64::new(0),
    });
    let order = if ordered { Order::PerKey } else { Order::None };
    let mut receiver = client
        .receiver(queue.as_str())
        .prefetch(setting("PREFETCH", PREFETCH))
        .ordering(order)
        .discard_dead_letters()
        .await
        .unwrap();
    let free = Arc::new(Semaphore::new(CONCURRENCY));
    let mut begun = None;
    for _ in 0..MESSAGES {
        let place = free.clone().acquire_owned().await.unwrap();
        let delivery = receiver.receive().await.unwrap();
        begun.get_or_insert_with(Instant::now);
        let book = book.clone();
        tokio::spawn(async move {
            book.handle(delivery).await;
            drop(place);
        });
    }
    drop(free.acquire_many(CONCURRENCY as u32).await.unwrap());
    receiver.flush().await.unwrap();
    let seconds = begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
    let handled: usize = book.next.iter().map(|next| next.load(Ordering::Acquire)).sum();
    assert_eq!(handled, MESSAGES);
    let report = client.close(Duration::from_secs(10)).await;
    assert!(report.is_clean(), "{report:?}");
    (seconds, book.slept.load(Ordering::Relaxed) as f64 / 1e6 / MESSAGES as f64)
}

async fn fill(client: &Client, queue: &str, keys: usize) {
    let sender = client.sender(queue).await.unwrap();
    let mut next = vec![0_usize; keys];
    let messages = (0..MESSAGES).map(|_| {
        let key = fastrand::usize(..keys);
        next[key] += 1;
        Message::new((next[key] - 1).to_string()).key(key.to_string())
    });
    sender.send_batch(messages).await.unwrap();
}
