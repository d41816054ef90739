//! A cluster of three nodes, of RabbitMQ 3.10 and of 4.3 or newer: nodes are killed and restarted under load, and clients
//! that know all three move to a living one by themselves. And a queue that does not confirm, as one without its majority.
//!
//! `FAULTS=3` runs it; without the variable it says so and leaves the machine alone.

mod own;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use own::Own;
use parking_lot::Mutex;
use queue_amqp::DRIVER;
use queue_core::{Address, Client, EventKind, EventStream, Message, ProducerOptions, Receiver, Sender};
use tokio::time::{Instant, sleep, timeout};

/// Elections, a node that starts, connections that come back.
const PATIENCE: Duration = Duration::from_secs(90);
/// Messages that tell that the stream flows.
const FLOWS: usize = 500;
/// Messages that are sent at once.
const BATCH: usize = 50;
const PREFETCH: usize = 100;

fn main() {
    let arguments = Arguments::from_args();
    let faults = std::env::var("FAULTS").ok().and_then(|count| count.parse().ok());
    let trials = [("rabbitmq", "cluster", 3), ("rabbitmq4", "cluster4", 6)].map(|(server, cluster, distance)| {
        Trial::ignorable_test(format!("{server}_nodes_killed_and_restarted_lose_nothing_confirmed"), move || {
            let Some(faults) = faults else {
                return Ok(Completion::ignored_with("set FAULTS to how many faults there should be"));
            };
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let nodes = Nodes { own: Own::new("amqp-cluster"), server, distance };
            runtime.block_on(async {
                nodes.brokers(&["up", cluster]).await?;
                let result = tokio::spawn(under_load(nodes.clone(), faults)).await;
                nodes.brokers(&["down", cluster]).await?;
                result.map_err(|panic| Failed::from(panic.to_string()))?
            })?;
            Ok(Completion::Completed)
        })
    });
    let silent = Trial::ignorable_test("a_queue_that_does_not_confirm_stops_no_other", move || {
        if faults.is_none() {
            return Ok(Completion::ignored_with("set FAULTS to how many faults there should be"));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let own = Own::new("amqp-silent");
        runtime.block_on(async {
            own.brokers(&["up", "rabbitmq"]).await?;
            let result = tokio::spawn(beside_a_silent_queue(own.clone())).await;
            own.brokers(&["down", "rabbitmq"]).await?;
            result.map_err(|panic| Failed::from(panic.to_string()))?
        })?;
        Ok(Completion::Completed)
    });
    // The machine holds one cluster at a time.
    let trials = trials.into_iter().chain([silent]).collect();
    libtest_mimic::run(&Arguments { test_threads: Some(1), ..arguments }, trials).exit();
}

/// The nodes of a cluster, by number from 0 on.
#[derive(Clone)]
struct Nodes {
    own: Own,
    server: &'static str,
    distance: u16,
}

impl Nodes {
    fn host(&self, node: u16) -> String {
        format!("127.0.0.1:{}", self.own.port(self.distance + node))
    }

    fn name(&self, node: u16) -> String {
        format!("{}-{}", self.server, node + 1)
    }

    async fn brokers(&self, arguments: &[&str]) -> Result<String, Failed> {
        Ok(self.own.brokers(arguments).await?)
    }

    /// What every node says about the queues and who uses them.
    async fn tell(&self) -> String {
        const QUESTIONS: [&[&str]; 3] = [
            &[
                "list_queues",
                "name",
                "state",
                "leader",
                "online",
                "messages_ready",
                "messages_unacknowledged",
                "consumers",
            ],
            &["list_connections", "name", "state", "channels"],
            &[
                "list_channels",
                "connection",
                "name",
                "consumer_count",
                "messages_unacknowledged",
                "messages_unconfirmed",
            ],
        ];
        let mut text = String::new();
        for node in 0..3 {
            for question in QUESTIONS {
                let name = self.name(node);
                let arguments = [&["tool", &name, "--quiet", "--timeout", "10"], question].concat();
                let answer = self.own.brokers(&arguments).await.unwrap_or_else(|error| error);
                text.push_str(&format!("\n{name} {}:\n{answer}", question[0]));
            }
        }
        text
    }

    /// Waits until the queues have their majority without this node too: one that was just started may run before its
    /// copies do, and then the next to go takes the majority with it.
    async fn can_spare(&self, node: u16) -> Result<String, Failed> {
        let words = "true = rabbit_upgrade_preparation:await_online_quorum_plus_one(60000).";
        self.brokers(&["tool", &self.name(node), "--quiet", "eval", words]).await
    }

    async fn connect(&self) -> Result<Client, Failed> {
        let hosts = [0, 1, 2].map(|node| self.host(node)).join(",");
        let options = "heartbeat=1s&operation_timeout=5s&connect_timeout=5s&max_backoff=500ms";
        Ok(Client::connect_with(&format!("amqp://guest:guest@{hosts}?{options}"), &[DRIVER]).await?)
    }
}

/// What became of the messages.
#[derive(Default)]
struct Book {
    confirmed: Mutex<BTreeSet<String>>,
    /// How often each was processed; written before the ack.
    processed: Mutex<HashMap<String, usize>>,
    /// The host that each client was connected to last.
    connected: Mutex<HashMap<&'static str, String>>,
    /// Connections that were lost.
    lost: AtomicUsize,
}

impl Book {
    /// Waits until messages flow (again), after what was done to a node.
    async fn flows(&self, after: &str) -> Result<(), Failed> {
        let before = self.processed.lock().len();
        let flow = until("messages flow", || self.processed.lock().len() >= before + FLOWS).await;
        flow.map_err(|_| {
            let (confirmed, processed) = (self.confirmed.lock().len(), self.processed.lock().len());
            let connected = self.connected.lock();
            format!("after {after}, with {confirmed} confirmed and {processed} processed, nothing flows: {connected:?}")
                .into()
        })
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) -> Result<(), Failed> {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > end {
            return Err(format!("not within {PATIENCE:?}: {what}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn under_load(nodes: Nodes, faults: u16) -> Result<(), Failed> {
    // A queue that is made before has its copies on fewer nodes, and no majority without one of them.
    for node in 0..3 {
        nodes.brokers(&["tool", &nodes.name(node), "--quiet", "await_online_nodes", "3", "--timeout", "60"]).await?;
    }
    let (from, to) = (nodes.connect().await?, nodes.connect().await?);
    let book = Arc::new(Book::default());
    let mut tasks = tokio::task::JoinSet::new();
    for (who, client) in [("sender", &from), ("receiver", &to)] {
        book.connected.lock().insert(who, nodes.host(0));
        tasks.spawn(follow(client.events(), who, book.clone()));
    }
    let sender = from.sender("orders").deadline(PATIENCE).await?;
    let receiver = to.receiver("orders").prefetch(PREFETCH).max_deliveries(1000).await?;
    // RabbitMQ writes down late that a quorum queue exists.
    sleep(Duration::from_secs(2)).await;
    let sending = Arc::new(AtomicBool::new(true));
    let sent = tokio::spawn(send(sender, book.clone(), sending.clone()));
    let received = tokio::spawn(receive(receiver, book.clone(), sending.clone()));
    let flows = async |after: &str| match book.flows(after).await {
        Ok(()) => Ok(()),
        Err(error) => {
            let health = (from.health(), to.health());
            Err(Failed::from(format!("{}\n{health:?}{}", error.message().unwrap_or_default(), nodes.tell().await)))
        }
    };
    flows("the start").await?;
    // In each round, one node is killed and two are started.
    for round in 0..faults.div_ceil(3) {
        let at = book.connected.lock()["sender"].clone();
        let node = (0..3).find(|node| nodes.host(*node) == at).ok_or(format!("events name {at}"))?;
        let other = (node + 1) % 3;
        nodes.can_spare(node).await?;
        nodes.brokers(&["kill", &nodes.name(node)]).await?;
        let moved = || book.connected.lock().values().all(|host| *host != at);
        until("the clients move to a living node", moved).await?;
        flows("a kill").await?;
        nodes.brokers(&["start", &nodes.name(node)]).await?;
        flows("the start of what was killed").await?;
        nodes.can_spare(other).await?;
        nodes.brokers(&["tool", &nodes.name(other), "--quiet", "shutdown"]).await?;
        flows("a shutdown").await?;
        nodes.brokers(&["start", &nodes.name(other)]).await?;
        flows("the start of what was shut down").await?;
        let now = book.connected.lock().clone();
        eprintln!("round {}: {at} killed, {} restarted; now {now:?}", round + 1, nodes.host(other));
    }
    sending.store(false, Ordering::Release);
    timeout(PATIENCE * 2, sent).await???;
    timeout(PATIENCE * 2, received).await???;
    let (confirmed, processed) = (book.confirmed.lock().clone(), book.processed.lock().clone());
    let missing: Vec<_> = confirmed.iter().filter(|name| !processed.contains_key(*name)).collect();
    if !missing.is_empty() {
        return Err(format!("{} confirmed messages never came, such as {}", missing.len(), missing[0]).into());
    }
    until("health is up", || from.health().is_up() && to.health().is_up()).await?;
    for queue in ["orders", "orders-dlq"] {
        let mut rest = to.receiver(queue).discard_dead_letters().await?;
        if let Some(delivery) = rest.receive_batch_within(1, Duration::from_secs(2)).await?.iter().next() {
            return Err(format!("{queue} still holds {:?}", delivery.message().text()).into());
        }
    }
    let repeats: usize = processed.values().map(|times| times - 1).sum();
    // What a receiver holds and a sender has in flight.
    let (lost, each) = (book.lost.load(Ordering::Acquire), PREFETCH + BATCH);
    println!(
        "{}: {} confirmed, all processed; {lost} connections lost, {repeats} repeated (at most {})",
        nodes.server,
        confirmed.len(),
        lost * each
    );
    if repeats > lost * each {
        return Err(format!("{repeats} repeats for {lost} lost connections").into());
    }
    Ok(())
}

/// Writes down where a client is, as its events tell.
async fn follow(mut events: EventStream, who: &'static str, book: Arc<Book>) {
    while let Some(event) = events.next().await {
        match event.kind {
            EventKind::Connected => drop(book.connected.lock().insert(who, event.subject.to_string())),
            EventKind::Disconnected => drop(book.lost.fetch_add(1, Ordering::AcqRel)),
            _ => {}
        }
    }
}

async fn send(sender: Sender, book: Arc<Book>, sending: Arc<AtomicBool>) -> Result<(), Failed> {
    let mut next = 0;
    while sending.load(Ordering::Acquire) {
        let names: Vec<_> = (next..next + BATCH).map(|n| format!("m{n}")).collect();
        next += BATCH;
        let sent = sender.send_batch(names.iter().map(|name| Message::new(name.clone()))).await;
        let failed: BTreeSet<_> = sent.err().iter().flat_map(|e| e.failures()).map(|(index, _)| index).collect();
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

/// A queue whose process stands still, and another that goes on.
async fn beside_a_silent_queue(own: Own) -> Result<(), Failed> {
    /// More than the library keeps of those that overtook one.
    const OVERTAKING: usize = 150_000;
    let url = format!("amqp://guest:guest@127.0.0.1:{}?amqp.x-queue-type=classic", own.port(0));
    let client = Client::connect_with(&url, &[DRIVER]).await?;
    let silent = client.sender("silent").deadline(PATIENCE * 4).await?;
    let others = client.sender("others").deadline(PATIENCE).await?;
    let name = "rabbit_misc:r(<<\"/\">>, queue, <<\"silent\">>)";
    let tell = async |what: &str| {
        let words = format!("{{ok, Q}} = rabbit_amqqueue:lookup({name}), sys:{what}(amqqueue:get_pid(Q)).");
        own.brokers(&["tool", "rabbitmq", "--quiet", "eval", &words]).await
    };
    tell("suspend").await?;
    let waiting = silent.submit("held").await?;
    let mut most = 0;
    for _ in 0..OVERTAKING / 5000 {
        let batch = (0..5000).map(|n| Message::new(n.to_string()));
        timeout(PATIENCE, others.send_batch(batch)).await.map_err(|_| "the others got no answer")??;
        most = most.max(kept(&client).await?);
    }
    if most > 80_000 {
        return Err(format!("{most} messages were kept").into());
    }
    tell("resume").await?;
    timeout(PATIENCE, waiting).await??;
    println!("{OVERTAKING} messages overtook one; {most} were kept at most");
    Ok(())
}

/// How many messages the publishing channels keep.
async fn kept(client: &Client) -> Result<usize, Failed> {
    let address = Address::queue("others")?;
    let producer = client.broker().producer(&address, &ProducerOptions::default()).await?;
    let shown = format!("{producer:?}");
    let kept = shown.split_once("kept: ").map(|(_, kept)| kept.split(|c: char| !c.is_ascii_digit()).next());
    Ok(kept.flatten().unwrap_or_default().parse()?)
}
