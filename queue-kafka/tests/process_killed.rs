//! A process is killed in the middle of its work, again and again: every message is processed at least once, and what is
//! processed again was unanswered, or answered within one commit interval before the end.
//!
//! `FAULTS=3` runs it, on a broker of its own; without the variable it says so. The process that is killed is this
//! program, started with [`LOG`] in its environment.

mod own;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use own::Own;
use queue_core::{Address, Client, Delivery, Entry, Message, Sender, Topology};
use queue_kafka::DRIVER;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// Names the file in which a process writes down what it does, and makes it the process that is killed.
const LOG: &str = "ANYQUEUE_PROCESS_KILLED_LOG";
/// Names the broker for that process.
const URL: &str = "ANYQUEUE_PROCESS_KILLED_URL";

const QUEUE: &str = "work";
const PREFETCH: usize = 100;
/// Messages that are sent at once.
const BATCH: usize = 50;
/// Sending waits while so many were not processed, which is more than a process does.
const AHEAD: usize = 5_000;
/// One message in so many gets no answer until its process is killed: the position stays before it.
const HELD: u64 = 400;
/// Longer than the default, so that there is much to repeat.
const COMMIT_INTERVAL: Duration = Duration::from_millis(500);
/// How long a commit may take on a busy machine, until the broker has it.
const COMMIT: Duration = Duration::from_millis(300);
/// Until a killed member is missed, and its partitions are given away.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    if let (Ok(log), Ok(url)) = (std::env::var(LOG), std::env::var(URL)) {
        let never = Arc::new(AtomicBool::new(false));
        runtime().unwrap().block_on(work(&url, Path::new(&log), true, never)).unwrap();
        return;
    }
    let trial = Trial::ignorable_test("a_killed_process_loses_nothing_and_repeats_little", move || {
        let Some(faults) = std::env::var("FAULTS").ok().and_then(|count| count.parse().ok()) else {
            return Ok(Completion::ignored_with("set FAULTS to how many faults there should be"));
        };
        let own = Own::new("kafka-process-killed");
        runtime()?.block_on(async {
            own.brokers(&["up", "kafka"]).await?;
            let result = tokio::spawn(lives(own.clone(), faults)).await;
            own.brokers(&["down", "kafka"]).await?;
            result.map_err(|panic| Failed::from(panic.to_string()))?
        })?;
        Ok(Completion::Completed)
    });
    libtest_mimic::run(&Arguments::from_args(), vec![trial]).exit();
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The log of a process. What was written is there after a kill: the system has it.
struct Log(File);

impl Log {
    fn write(&self, what: char, number: &str) {
        let line = format!("{what} {number} {}\n", now().as_micros());
        (&self.0).write_all(line.as_bytes()).unwrap();
    }
}

/// Processes messages until nothing comes and `enough` says so.
async fn work(url: &str, log: &Path, holds: bool, enough: Arc<AtomicBool>) -> Result<(), Failed> {
    let log = Arc::new(Log(OpenOptions::new().create(true).append(true).open(log)?));
    let client = Client::connect_with(url, &[DRIVER]).await?;
    let mut receiver = client.receiver(QUEUE).prefetch(PREFETCH).await?;
    loop {
        match timeout(Duration::from_secs(3), receiver.receive()).await {
            Ok(delivery) => drop(tokio::spawn(process(delivery?, log.clone(), holds))),
            Err(_) if enough.load(Ordering::Acquire) => break,
            Err(_) => {}
        }
    }
    let report = receiver.close(Duration::from_secs(10)).await;
    if report.is_clean() { Ok(()) } else { Err(format!("the receiver's close: {report:?}").into()) }
}

/// Takes a moment before it is processed and another before the answer, so that answers come out of order and some are
/// missing when the process ends.
async fn process(delivery: Delivery, log: Arc<Log>, holds: bool) {
    let number = delivery.text().unwrap_or_default().to_owned();
    if holds && fastrand::u64(..HELD) == 0 {
        log.write('H', &number);
        return std::future::pending().await;
    }
    sleep(Duration::from_millis(fastrand::u64(..80))).await;
    log.write('P', &number);
    sleep(Duration::from_millis(fastrand::u64(..80))).await;
    delivery.ack();
    log.write('A', &number);
}

/// What a process did: when it processed each message, and when it had answered it.
#[derive(Default)]
struct Life {
    processed: BTreeMap<u64, Duration>,
    answered: BTreeMap<u64, Duration>,
    held: BTreeSet<u64>,
    /// Messages that this one process was given twice.
    twice: Vec<u64>,
    /// When it was alive for the last time.
    killed: Option<Duration>,
}

impl Life {
    fn read(log: &Path, killed: Option<Duration>) -> Result<Self, Failed> {
        let mut life = Self { killed, ..Self::default() };
        for line in std::fs::read_to_string(log)?.lines() {
            let mut words = line.split(' ');
            let (Some(what), Some(number), Some(at)) = (words.next(), words.next(), words.next()) else {
                return Err(format!("a line of the log: {line:?}").into());
            };
            let (number, at) = (number.parse()?, Duration::from_micros(at.parse()?));
            let again = match what {
                "P" => life.processed.insert(number, at).is_some(),
                "A" => life.answered.insert(number, at).is_some(),
                _ => !life.held.insert(number),
            };
            if again {
                life.twice.push(number);
            }
        }
        Ok(life)
    }
}

/// How many answers stand in a log so far.
fn answers(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().lines().filter(|line| line.starts_with('A')).count()
}

async fn lives(own: Own, faults: usize) -> Result<(), Failed> {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("process-killed-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let interval = COMMIT_INTERVAL.as_millis();
    let options = format!("commit_interval={interval}ms&kafka.session.timeout.ms=6000");
    let url = format!("kafka://127.0.0.1:{}?{options}", own.port(0));
    let client = Client::connect_with(&url, &[DRIVER]).await?;
    let mut entry = Entry::new(Address::queue(QUEUE)?);
    entry.partitions = Some(4);
    client.declare(&Topology::from_iter([entry])).await?;

    let (sending, done) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let sent = tokio::spawn(send(client.sender(QUEUE).deadline(PATIENCE).await?, sending.clone(), done.clone()));
    let mut all = Vec::new();
    for number in 0..faults {
        let log = folder.join(format!("life-{number}"));
        let mut child = start(&url, &log)?;
        let enough = fastrand::usize(500..2_500);
        let result = until(&mut child, &log, enough).await;
        sleep(Duration::from_millis(fastrand::u64(..500))).await;
        let killed = now();
        child.kill().await?;
        result?;
        let life = Life::read(&log, Some(killed))?;
        done.fetch_add(life.answered.len(), Ordering::AcqRel);
        all.push(life);
    }
    // The last one is not killed.
    let (log, enough) = (folder.join("last"), Arc::new(AtomicBool::new(false)));
    let last = tokio::spawn({
        let (url, log, enough) = (url.clone(), log.clone(), enough.clone());
        async move { work(&url, &log, false, enough).await }
    });
    let end = Instant::now() + PATIENCE;
    while answers(&log) == 0 {
        if Instant::now() > end || last.is_finished() {
            return Err("the last process gets nothing".into());
        }
        sleep(Duration::from_millis(20)).await;
    }
    sending.store(false, Ordering::Release);
    let confirmed = timeout(PATIENCE, sent).await???;
    enough.store(true, Ordering::Release);
    timeout(PATIENCE, last).await???;
    all.push(Life::read(&log, None)?);
    std::fs::remove_dir_all(&folder)?;
    judge(&confirmed, &all)
}

fn start(url: &str, log: &Path) -> Result<Child, Failed> {
    let program = std::env::current_exe()?;
    Ok(Command::new(program).env(LOG, log).env(URL, url).stdin(Stdio::null()).kill_on_drop(true).spawn()?)
}

/// Waits until a process has given so many answers.
async fn until(child: &mut Child, log: &Path, enough: usize) -> Result<(), Failed> {
    let end = Instant::now() + PATIENCE;
    while answers(log) < enough {
        if let Some(status) = child.try_wait()? {
            return Err(format!("the process ended by itself: {status}").into());
        }
        if Instant::now() > end {
            return Err(format!("within {PATIENCE:?} a process gave {} answers of {enough}", answers(log)).into());
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Sends until it is told to stop; the numbers that were confirmed.
async fn send(sender: Sender, sending: Arc<AtomicBool>, done: Arc<AtomicUsize>) -> Result<BTreeSet<u64>, Failed> {
    let mut next = 0;
    while sending.load(Ordering::Acquire) {
        if next < done.load(Ordering::Acquire) + AHEAD {
            let batch = (next..next + BATCH).map(|n| Message::new(n.to_string()).key(n.to_string()));
            sender.send_batch(batch).await?;
            next += BATCH;
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok((0..u64::try_from(next)?).collect())
}

fn judge(confirmed: &BTreeSet<u64>, lives: &[Life]) -> Result<(), Failed> {
    let processed: BTreeSet<u64> = lives.iter().flat_map(|life| life.processed.keys().copied()).collect();
    let lost: Vec<_> = confirmed.difference(&processed).collect();
    if let Some(first) = lost.first() {
        return Err(format!("{} of {} messages never came, such as {first}", lost.len(), confirmed.len()).into());
    }
    let (mut repeats, mut most, mut oldest) = (0, 0, Duration::ZERO);
    for (number, life) in lives.iter().enumerate() {
        if let Some(twice) = life.twice.first() {
            return Err(format!("process {number} was given {twice} twice, of {}", life.twice.len()).into());
        }
        let later: BTreeSet<u64> =
            lives[number + 1..].iter().flat_map(|l| l.processed.keys().chain(&l.held).copied()).collect();
        if let Some(held) = life.held.iter().find(|held| !later.contains(held)) {
            return Err(format!("{held} got no answer from process {number}, and did not come again").into());
        }
        let Some(killed) = life.killed else { continue };
        let unanswered = life.processed.keys().filter(|n| !life.answered.contains_key(n)).count();
        let uncommitted = life.answered.values().filter(|at| **at + COMMIT_INTERVAL + COMMIT > killed).count();
        let again: Vec<u64> = life.processed.keys().filter(|n| later.contains(n)).copied().collect();
        for answered in again.iter().filter_map(|n| life.answered.get(n)) {
            oldest = oldest.max(killed.saturating_sub(*answered));
        }
        println!(
            "process {number}: {} processed, {unanswered} of them and {} held without an answer, {} repeated",
            life.processed.len(),
            life.held.len(),
            again.len()
        );
        if again.len() > unanswered + uncommitted {
            return Err(format!(
                "{} repeats; {unanswered} unanswered and {uncommitted} just answered explain them",
                again.len()
            )
            .into());
        }
        repeats += again.len();
        most += unanswered + uncommitted;
    }
    println!(
        "{} processes killed: {} messages confirmed, all processed; {repeats} repeated (at most {most}); the oldest answer \
         that was lost was {oldest:?} old (a commit interval is {COMMIT_INTERVAL:?})",
        lives.len() - 1,
        confirmed.len(),
    );
    if oldest > COMMIT_INTERVAL + COMMIT {
        return Err(format!("an answer of {oldest:?} before the end was not committed").into());
    }
    Ok(())
}
