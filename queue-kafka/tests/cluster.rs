//! A cluster of three nodes, topics with three copies of which two have to be there: nodes are killed and started again
//! under load, one after the other, and every confirmed message arrives.
//!
//! `FAULTS=3` runs it, on a cluster of its own; without the variable it says so.

mod own;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use own::Own;
use parking_lot::Mutex;
use queue_core::{Address, Client, Entry, EventKind, EventStream, Message, Receiver, Sender, Topology};
use queue_kafka::DRIVER;
use queue_kafka::rdkafka::ClientConfig;
use queue_kafka::rdkafka::consumer::{BaseConsumer, Consumer as _};
use tokio::time::{Instant, sleep, timeout};

const NODES: u16 = 3;
const PARTITIONS: u32 = 6;
/// Elections, a node that starts, copies that catch up.
const PATIENCE: Duration = Duration::from_secs(90);
/// Messages that tell that the stream flows.
const FLOWS: usize = 500;
/// Messages that are sent at once.
const BATCH: usize = 50;
const PREFETCH: usize = 100;

fn main() {
    let trial = Trial::ignorable_test("nodes_killed_and_started_again_lose_nothing_confirmed", || {
        let Some(faults) = std::env::var("FAULTS").ok().and_then(|count| count.parse().ok()) else {
            return Ok(Completion::ignored_with("set FAULTS to how many faults there should be"));
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let nodes = Nodes { own: Own::new("kafka-cluster") };
        runtime.block_on(async {
            nodes.own.brokers(&["up", "kafka-cluster"]).await?;
            let result = tokio::spawn(under_load(nodes.clone(), faults)).await;
            nodes.own.brokers(&["down", "kafka-cluster"]).await?;
            result.map_err(|panic| Failed::from(panic.to_string()))?
        })?;
        Ok(Completion::Completed)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

/// The nodes of the cluster, by number from 0 on.
#[derive(Clone)]
struct Nodes {
    own: Own,
}

impl Nodes {
    fn hosts(&self) -> String {
        (0..NODES).map(|node| format!("127.0.0.1:{}", self.own.port(2 + node))).collect::<Vec<_>>().join(",")
    }

    fn name(node: u16) -> String {
        format!("kafka-{}", node + 1)
    }

    async fn connect(&self) -> Result<Client, Failed> {
        // What was acknowledged within a commit interval before a member is lost comes again: a short one leaves little.
        let options = "connect_timeout=10s&commit_interval=10ms&kafka.socket.timeout.ms=3000";
        Ok(Client::connect_with(&format!("kafka://{}?{options}", self.hosts()), &[DRIVER]).await?)
    }

    /// Waits until every partition has all its copies: the next node to go takes none with it that is needed.
    async fn can_spare(&self) -> Result<(), Failed> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.hosts());
        let looked = tokio::task::spawn_blocking(move || {
            let client: BaseConsumer = config.create().map_err(|error| error.to_string())?;
            let end = std::time::Instant::now() + PATIENCE;
            let copies = usize::from(NODES);
            loop {
                if let Ok(metadata) = client.fetch_metadata(None, Duration::from_secs(3)) {
                    let partitions = || metadata.topics().iter().flat_map(|topic| topic.partitions());
                    let missing = partitions().filter(|p| p.isr().len() < copies || p.leader() < 0).count();
                    if metadata.brokers().len() == copies && missing == 0 && partitions().count() > 0 {
                        return Ok(());
                    }
                }
                if std::time::Instant::now() > end {
                    return Err(format!("not within {PATIENCE:?}: every partition has all its copies"));
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        looked.await?.map_err(Failed::from)
    }
}

/// What became of the messages.
#[derive(Default)]
struct Book {
    confirmed: Mutex<BTreeSet<String>>,
    /// Sends that failed, which do not count as lost.
    failed: AtomicUsize,
    /// How often each was processed; written before the ack.
    processed: Mutex<HashMap<String, usize>>,
    /// Connections that were lost.
    lost: AtomicUsize,
}

impl Book {
    /// Waits until messages flow (again), after what was done to a node.
    async fn flows(&self, after: &str) -> Result<(), Failed> {
        let (before, end) = (self.processed.lock().len(), Instant::now() + PATIENCE);
        while self.processed.lock().len() < before + FLOWS {
            if Instant::now() > end {
                let (confirmed, processed) = (self.confirmed.lock().len(), self.processed.lock().len());
                return Err(format!(
                    "after {after}, with {confirmed} confirmed and {processed} processed, nothing flows"
                )
                .into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

async fn under_load(nodes: Nodes, faults: u16) -> Result<(), Failed> {
    let (from, to) = (nodes.connect().await?, nodes.connect().await?);
    let book = Arc::new(Book::default());
    let mut followers = tokio::task::JoinSet::new();
    for client in [&from, &to] {
        followers.spawn(follow(client.events(), book.clone()));
    }
    let mut entry = Entry::new(Address::queue("orders")?);
    entry.partitions = Some(PARTITIONS);
    from.declare(&Topology::from_iter([entry])).await?;
    let sender = from.sender("orders").deadline(PATIENCE).await?;
    let receiver = to.receiver("orders").prefetch(PREFETCH).await?;
    let sending = Arc::new(AtomicBool::new(true));
    let sent = tokio::spawn(send(sender, book.clone(), sending.clone()));
    let received = tokio::spawn(receive(receiver, book.clone(), sending.clone()));
    book.flows("the start").await?;
    for round in 0..faults {
        let name = Nodes::name(round % NODES);
        nodes.can_spare().await?;
        nodes.own.brokers(&["kill", &name]).await?;
        let killed = Instant::now();
        book.flows("a kill").await?;
        println!("{name} killed; messages flowed after {:?}", killed.elapsed());
        nodes.own.brokers(&["start", &name]).await?;
        book.flows("the start of what was killed").await?;
    }
    sending.store(false, Ordering::Release);
    timeout(PATIENCE * 2, sent).await???;
    timeout(PATIENCE * 2, received).await???;
    let (confirmed, processed) = (book.confirmed.lock().clone(), book.processed.lock().clone());
    let missing: Vec<_> = confirmed.iter().filter(|name| !processed.contains_key(*name)).collect();
    if !missing.is_empty() {
        return Err(format!("{} confirmed messages never came, such as {}", missing.len(), missing[0]).into());
    }
    let mut rest = to.receiver("orders").await?;
    if let Some(delivery) = rest.receive_batch_within(1, Duration::from_secs(3)).await?.iter().next() {
        return Err(format!("there still is {:?}", delivery.message().text()).into());
    }
    let repeats: usize = processed.values().map(|times| times - 1).sum();
    // What a receiver holds and a sender has in flight, each time.
    let most = book.lost.load(Ordering::Acquire).max(usize::from(faults)) * (PREFETCH + BATCH);
    println!(
        "{faults} nodes killed: {} confirmed, all processed; {} sends failed, {repeats} repeated (at most {most})",
        confirmed.len(),
        book.failed.load(Ordering::Acquire),
    );
    if repeats > most { Err(format!("{repeats} repeats, where {most} are explained").into()) } else { Ok(()) }
}

async fn follow(mut events: EventStream, book: Arc<Book>) {
    while let Some(event) = events.next().await {
        book.lost.fetch_add(usize::from(event.kind == EventKind::Disconnected), Ordering::AcqRel);
    }
}

async fn send(sender: Sender, book: Arc<Book>, sending: Arc<AtomicBool>) -> Result<(), Failed> {
    let mut next = 0;
    while sending.load(Ordering::Acquire) {
        let names: Vec<_> = (next..next + BATCH).map(|n| format!("m{n}")).collect();
        next += BATCH;
        let batch = names.iter().map(|name| Message::new(name.clone()).key(name.clone()));
        let sent = sender.send_batch(batch).await;
        let failed: BTreeSet<_> = sent.err().iter().flat_map(|e| e.failures()).map(|(index, _)| index).collect();
        book.failed.fetch_add(failed.len(), Ordering::AcqRel);
        let confirmed = names.into_iter().enumerate().filter(|(index, _)| !failed.contains(index));
        book.confirmed.lock().extend(confirmed.map(|(_, name)| name));
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Receives until nothing is sent and nothing comes any more.
async fn receive(mut receiver: Receiver, book: Arc<Book>, sending: Arc<AtomicBool>) -> Result<(), Failed> {
    loop {
        match timeout(Duration::from_secs(3), receiver.receive()).await {
            Ok(delivery) => {
                let delivery = delivery?;
                let name = delivery.text().unwrap_or_default().to_owned();
                *book.processed.lock().entry(name).or_default() += 1;
                delivery.ack();
            }
            Err(_) if !sending.load(Ordering::Acquire) => break,
            Err(_) => {}
        }
    }
    let report = receiver.close(Duration::from_secs(10)).await;
    // Its errors may tell of connections that were lost.
    if report.unanswered == 0 { Ok(()) } else { Err(format!("the receiver's close: {report:?}").into()) }
}
