//! Messages are copied from a topic to another, each once, while the processes that copy them give up at random, are
//! killed, come and go, and the broker is killed: with each protocol that Kafka has for groups.
//!
//! `FAULTS=3` runs it, on a broker of its own, with so many faults in each run; without the variable it says so. The
//! processes that copy are this program, started with [`NAME`] in their environment.

mod own;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use own::Own;
use queue_core::{Address, Client, Delivery, Entry, ErrorKind, Message, Outcome, Sender, Source, Topology, Transactor};
use queue_kafka::DRIVER;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// Names the transactions of a process that copies, and makes it one.
const NAME: &str = "ANYQUEUE_TRANSACTIONS_NAME";
/// What it is to connect to, and the topics.
const URL: &str = "ANYQUEUE_TRANSACTIONS_URL";
const FROM: &str = "ANYQUEUE_TRANSACTIONS_FROM";
const TO: &str = "ANYQUEUE_TRANSACTIONS_TO";

const COPIERS: usize = 3;
const PARTITIONS: u32 = 6;
/// Messages that are sent at once, and those that are copied in one transaction at most.
const BATCH: usize = 40;
/// One transaction in so many is given up, and one message in so many waits for a later one.
const GIVEN_UP: u8 = 5;
const LATER: u8 = 8;
const PATIENCE: Duration = Duration::from_secs(90);
/// What a broker says that has lost what it knew of groups until it has loaded it again, after it was killed: Kafka 4.2.0 does
/// so now and then on a busy machine. Nobody can copy once what it forgets, so such a run proves nothing.
const FORGOT: &str = "is out of sync with the underlying log";
/// Most runs until one proves something.
const RUNS: usize = 3;
/// How long a send may take while a broker is killed and starts again.
const SENDS: Duration = Duration::from_secs(120);
const CLOSE: Duration = Duration::from_secs(10);

/// The protocols, and the options that choose them. A killed member is missed as soon as the broker allows.
const PROTOCOLS: [(&str, &str); 3] = [
    ("cooperative", "kafka.session.timeout.ms=6000"),
    ("eager", "kafka.session.timeout.ms=6000&kafka.partition.assignment.strategy=range"),
    ("consumer", "kafka.group.protocol=consumer"),
];

fn main() {
    let mut arguments = Arguments::from_args();
    // They share the broker that they harm.
    arguments.test_threads = Some(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let (Ok(name), Ok(url), Ok(from), Ok(to)) =
        (std::env::var(NAME), std::env::var(URL), std::env::var(FROM), std::env::var(TO))
    {
        return runtime.block_on(copy(&name, &url, &from, &to)).unwrap();
    }
    let faults: Option<usize> = std::env::var("FAULTS").ok().and_then(|count| count.parse().ok());
    let own = Own::new("kafka-transactions");
    let runs = faults.is_some() && !arguments.list;
    if runs {
        runtime.block_on(own.brokers(&["up", "kafka"])).unwrap();
    }
    let handle = runtime.handle().clone();
    let trial = |name: String, work: Box<dyn FnOnce(usize) -> Result<(), Failed> + Send>| {
        Trial::ignorable_test(name, move || match faults {
            None => Ok(Completion::ignored_with("set FAULTS to how many faults there should be")),
            Some(faults) => work(faults).map(|()| Completion::Completed),
        })
    };
    let mut trials = Vec::new();
    for (protocol, options) in PROTOCOLS {
        let (own, handle) = (own.clone(), handle.clone());
        let work = move |faults| handle.block_on(each_is_copied_once_at_last(&own, protocol, options, faults));
        trials.push(trial(format!("{protocol}_each_message_is_copied_once"), Box::new(work)));
    }
    let (broker, one) = (own.clone(), handle.clone());
    let work = move |_| one.block_on(a_commit_without_an_answer_ends_in_time(&broker));
    trials.push(trial("a_commit_without_an_answer_ends_in_time".to_owned(), Box::new(work)));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if runs {
        runtime.block_on(own.brokers(&["down", "kafka"])).unwrap();
    }
    conclusion.exit();
}

/// A process that copies, until its standard input ends.
async fn copy(name: &str, url: &str, from: &str, to: &str) -> Result<(), Failed> {
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::spawn({
        let stop = stop.clone();
        move || {
            let _ = std::io::stdin().read(&mut [0]);
            stop.store(true, Ordering::Release);
        }
    });
    while !stop.load(Ordering::Acquire) {
        // The broker may be away, or another instance have the name for a moment.
        if let Err(error) = life(name, url, from, to, &stop).await {
            eprintln!("{name}: {error}");
            sleep(Duration::from_millis(500)).await;
        }
    }
    Ok(())
}

async fn life(name: &str, url: &str, from: &str, to: &str, stop: &AtomicBool) -> queue_core::Result<()> {
    let client = Client::connect_with(url, &[DRIVER]).await?;
    let mut source = client.receiver(from).prefetch(500).discard_dead_letters().await?;
    let transactions = client.transactions(name).deadline(Duration::from_secs(8)).await?;
    let mut later: Vec<Delivery> = Vec::new();
    let mut ended = Ok(());
    while !stop.load(Ordering::Acquire) {
        let mut batch: Vec<Delivery> =
            source.receive_batch_within(BATCH, Duration::from_millis(300)).await?.into_iter().collect();
        batch.append(&mut later);
        if batch.is_empty() {
            continue;
        }
        if let Err(error) = transact(&transactions, batch, &mut later, to).await {
            if error.outcome() == Outcome::Unknown || !error.is_retryable() {
                eprintln!("{name}: {error}");
            }
            if error.kind() == ErrorKind::Conflict {
                ended = Err(error);
                break;
            }
        }
    }
    // Not dropped: that would be a failed attempt.
    later.into_iter().for_each(drop_quietly);
    source.close(CLOSE).await;
    client.close(CLOSE).await;
    ended
}

fn drop_quietly(delivery: Delivery) {
    let _ = delivery.release();
}

async fn transact(
    transactions: &Transactor,
    batch: Vec<Delivery>,
    later: &mut Vec<Delivery>,
    to: &str,
) -> queue_core::Result<()> {
    let mut tx = match transactions.begin().await {
        Ok(tx) => tx,
        Err(error) => {
            batch.into_iter().for_each(drop_quietly);
            return Err(error);
        }
    };
    let mut mine = Vec::new();
    for delivery in batch {
        if fastrand::u8(..LATER) == 0 { later.push(delivery) } else { mine.push(delivery) }
    }
    let copies = mine.iter().map(|d| d.message().clone());
    let sent = tx.send_batch(to, copies.collect::<Vec<_>>()).await;
    let mut acked = Ok(());
    for delivery in mine {
        acked = acked.and(tx.ack(delivery));
    }
    sent.and(acked)?;
    match fastrand::u8(..GIVEN_UP * 2) {
        0 => tx.abort().await,
        1 => {
            drop(tx);
            Ok(())
        }
        _ => tx.commit().await,
    }
}

/// The processes that copy.
struct Copiers {
    url: String,
    from: String,
    to: String,
    all: Vec<Child>,
}

impl Copiers {
    fn start(&self, index: usize) -> Result<Child, Failed> {
        let child = Command::new(std::env::current_exe()?)
            .env(NAME, format!("{}-{index}", self.to))
            .env(URL, &self.url)
            .env(FROM, &self.from)
            .env(TO, &self.to)
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        Ok(child)
    }

    async fn kill(&mut self, index: usize) -> Result<(), Failed> {
        self.all[index].kill().await?;
        self.all[index] = self.start(index)?;
        Ok(())
    }

    /// Leaves in good order, and comes back.
    async fn renew(&mut self, index: usize) -> Result<(), Failed> {
        end(&mut self.all[index]).await?;
        self.all[index] = self.start(index)?;
        Ok(())
    }
}

async fn end(child: &mut Child) -> Result<(), Failed> {
    drop(child.stdin.take());
    timeout(PATIENCE, child.wait()).await??;
    Ok(())
}

async fn make(client: &Client, topic: &str, partitions: u32) -> Result<(), Failed> {
    let mut entry = Entry::new(Address::queue(topic)?);
    entry.partitions = Some(partitions);
    Ok(client.declare(&Topology::from_iter([entry])).await?)
}

/// Sends until it is told to stop; how many were confirmed.
async fn send(sender: Sender, sending: Arc<AtomicBool>) -> Result<u64, Failed> {
    let mut next = 0;
    while sending.load(Ordering::Acquire) {
        let numbers = next..next + BATCH as u64;
        next = numbers.end;
        sender.send_batch(numbers.map(|n| Message::new(n.to_string()).key(n.to_string()))).await?;
        sleep(Duration::from_millis(30)).await;
    }
    Ok(next)
}

async fn each_is_copied_once_at_last(own: &Own, protocol: &str, options: &str, faults: usize) -> Result<(), Failed> {
    for run in 1..RUNS {
        let mut forgot = Vec::new();
        let ended = each_is_copied_once(own, (protocol, run), options, faults, &mut forgot).await;
        match (&ended, forgot.first()) {
            (Err(error), Some(line)) => {
                println!("{protocol}: run {run} proves nothing, {error:?}, since the broker says: {line}");
            }
            _ => return ended,
        }
    }
    each_is_copied_once(own, (protocol, RUNS), options, faults, &mut Vec::new()).await
}

async fn each_is_copied_once(
    own: &Own,
    (protocol, run): (&str, usize),
    options: &str,
    faults: usize,
    forgot: &mut Vec<String>,
) -> Result<(), Failed> {
    let before = own.said(FORGOT);
    let said = || own.said(FORGOT).into_iter().filter(|line| !before.contains(line));
    let plain = format!("kafka://127.0.0.1:{}", own.port(0));
    let url = format!("{plain}?commit_interval=20ms&{options}");
    let (from, to) = (format!("tx-from-{protocol}-{run}"), format!("tx-to-{protocol}-{run}"));
    let client = Client::connect_with(&plain, &[DRIVER]).await?;
    make(&client, &from, PARTITIONS).await?;
    make(&client, &to, 2).await?;
    let sending = Arc::new(AtomicBool::new(true));
    let sent = tokio::spawn(send(client.sender(from.as_str()).deadline(SENDS).await?, sending.clone()));
    let mut copiers = Copiers { url, from, to, all: Vec::new() };
    for index in 0..COPIERS {
        copiers.all.push(copiers.start(index)?);
    }
    let mut reader = client.receiver(copiers.to.as_str()).prefetch(5_000).discard_dead_letters().await?;
    // By where they are: the reader itself may be handed one twice.
    let mut copies = BTreeMap::<u64, BTreeSet<(Option<u32>, Option<u64>)>>::new();
    let mut read = async |copies: &mut BTreeMap<u64, BTreeSet<_>>, within| -> Result<usize, Failed> {
        let batch = reader.receive_batch_within(5_000, within).await?;
        let count = batch.len();
        for copy in batch.iter() {
            let place = (copy.position().partition, copy.position().offset);
            copies.entry(copy.text().unwrap_or_default().parse()?).or_default().insert(place);
        }
        batch.ack();
        Ok(count)
    };
    // Some copies come after each fault, before the next.
    for fault in 0..faults {
        let (before, end) = (copies.len(), Instant::now() + PATIENCE);
        while copies.len() < before + 200 {
            read(&mut copies, Duration::from_millis(500)).await?;
            if Instant::now() > end {
                forgot.extend(said());
                sending.store(false, Ordering::Release);
                return Err(format!("{protocol}: no more copies come after fault {fault}").into());
            }
        }
        // In the middle of something.
        sleep(Duration::from_millis(fastrand::u64(..500))).await;
        match fault % 3 {
            0 => copiers.kill(fault / 3 % COPIERS).await?,
            1 => copiers.renew(fault / 3 % COPIERS).await?,
            _ => {
                forgot.extend(said());
                own.brokers(&["kill", "kafka"]).await?;
                sleep(Duration::from_millis(fastrand::u64(..2_000))).await;
                own.brokers(&["start", "kafka"]).await?;
            }
        }
    }
    sending.store(false, Ordering::Release);
    let sent = timeout(PATIENCE, sent).await???;
    // As long as more come: a busy machine may have many left.
    let mut last = (copies.len(), Instant::now());
    while (copies.len() as u64) < sent && last.1.elapsed() < PATIENCE {
        read(&mut copies, Duration::from_secs(1)).await?;
        if copies.len() > last.0 {
            last = (copies.len(), Instant::now());
        }
    }
    for child in &mut copiers.all {
        end(child).await?;
    }
    // What is behind the last.
    while read(&mut copies, Duration::from_secs(3)).await? > 0 {}
    let lag = client.stats(&Source::new(copiers.from.parse()?)).await?.lag;
    let missing: Vec<_> = (0..sent).filter(|number| !copies.contains_key(number)).collect();
    let doubled: Vec<_> = copies.iter().filter(|(_, places)| places.len() > 1).collect();
    forgot.extend(said());
    if !missing.is_empty() && lag == Some(0) {
        // They were passed over, and what a broker forgets comes again.
        forgot.clear();
    }
    println!("{protocol}: {sent} sent, {} copied, {} missing, {} doubled", copies.len(), missing.len(), doubled.len());
    client.close(CLOSE).await;
    if !missing.is_empty() || !doubled.is_empty() {
        let (missing, doubled) = (missing.iter().take(5), doubled.iter().take(5));
        let what = format!("missing: {:?}, doubled: {:?}", missing.collect::<Vec<_>>(), doubled.collect::<Vec<_>>());
        return Err(what.into());
    }
    Ok(())
}

async fn a_commit_without_an_answer_ends_in_time(own: &Own) -> Result<(), Failed> {
    const DEADLINE: Duration = Duration::from_secs(3);
    let url = format!("kafka://127.0.0.1:{}?partitions=1", own.port(0));
    let client = Client::connect_with(&url, &[DRIVER]).await?;
    let (from, to) = ("tx-dead-from", "tx-dead-to");
    client.sender(from).await?.send("1").await?;
    let mut source = client.receiver(from).discard_dead_letters().await?;
    let transactions = client.transactions("tx-dead").deadline(DEADLINE).await?;
    let mut tx = transactions.begin().await?;
    tx.send(to, "copy").await?;
    tx.ack(timeout(PATIENCE, source.receive()).await??)?;
    own.brokers(&["freeze", "kafka"]).await?;
    let begun = Instant::now();
    let error = tx.commit().await.err().ok_or("a broker that is frozen confirmed it")?;
    let took = begun.elapsed();
    println!("{took:?}: {error:?}");
    let next = Instant::now();
    let begin = transactions.begin().await;
    println!("{:?}: {:?}", next.elapsed(), begin.as_ref().err());
    let late = next.elapsed() > DEADLINE * 2;
    drop(begin);
    own.brokers(&["thaw", "kafka"]).await?;
    if took > DEADLINE * 2 || late {
        return Err(format!("it took {took:?} to say so").into());
    }
    // Whatever became of it, it happens once.
    let mut target = client.receiver(to).discard_dead_letters().await?;
    let end = Instant::now() + PATIENCE;
    let mut copies = 0;
    while Instant::now() < end && copies == 0 {
        if let Some(delivery) = source.receive_batch_within(1, Duration::from_secs(1)).await?.into_iter().next() {
            // A broker that has just come back may take a moment.
            match transactions.begin().await {
                Ok(mut tx) => {
                    tx.send(to, "copy").await?;
                    tx.ack(delivery)?;
                    if let Err(error) = tx.commit().await {
                        println!("{error:?}");
                    }
                }
                Err(error) => {
                    println!("{error:?}");
                    drop_quietly(delivery);
                }
            }
        } else if let Ok(tx) = transactions.begin().await {
            // Ends what the last left open.
            tx.abort().await?;
        }
        let batch = target.receive_batch_within(10, Duration::from_millis(500)).await?;
        copies += batch.len();
        batch.ack();
    }
    let again = target.receive_batch_within(10, Duration::from_secs(5)).await?;
    copies += again.len();
    again.ack();
    let left = source.receive_batch_within(1, Duration::from_secs(2)).await?;
    client.close(CLOSE).await;
    if copies != 1 || !left.is_empty() {
        return Err(format!("{copies} copies, and {} messages are left", left.len()).into());
    }
    Ok(())
}
