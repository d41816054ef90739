//! Three receivers of one group join and leave under load, with each protocol that Kafka has for it: nothing is lost,
//! nothing acknowledged comes again (unless the group had given its receiver up, on a busy machine, and refused the commit),
//! no message is skipped, and no partition is with two receivers at a time.
//!
//! Members with an id of their own come back to what they had: see [`static_members`].
//!
//! `FAULTS=3` runs it, on a broker of its own, and so many times a receiver leaves and comes back; without the variable it
//! says so.

mod own;
#[path = "rebalance/static_members.rs"]
mod static_members;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use own::Own;
use parking_lot::Mutex;
use queue_core::{Address, Answered, Client, Delivery, Entry, EventKind, Message, Receiver, Sender, Topology};
use queue_kafka::DRIVER;
use static_members::End;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

const RECEIVERS: usize = 3;
const PARTITIONS: u32 = 8;
const KEYS: u64 = 64;
const PREFETCH: usize = 50;
/// Messages that are sent at once.
const BATCH: u64 = 50;
/// One handler in so many takes so long that it loses its message with the next change.
const SLOW: (u64, Duration) = (300, Duration::from_secs(5));
/// Messages that tell that a receiver has joined.
const FLOWS: usize = 50;
/// A group that settles, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a member may be silent until its group gives it up, and a commit interval: what it answered meanwhile is lost.
const SESSION: Duration = Duration::from_millis(10_200);

/// The protocols, and the options that choose them.
const PROTOCOLS: [(&str, &str); 3] = [
    ("eager", "kafka.partition.assignment.strategy=range"),
    ("cooperative", "kafka.partition.assignment.strategy=cooperative-sticky"),
    ("consumer", "kafka.group.protocol=consumer"),
];

fn main() {
    let arguments = Arguments::from_args();
    let faults: Option<usize> = std::env::var("FAULTS").ok().and_then(|count| count.parse().ok());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Some(served) = runtime.block_on(static_members::serve()) {
        return served.unwrap();
    }
    let own = Own::new("kafka-rebalance");
    let runs = faults.is_some() && !arguments.list;
    if runs {
        runtime.block_on(own.brokers(&["up", "kafka"])).unwrap();
    }
    let come_and_go = PROTOCOLS.map(|(name, options)| {
        let url = format!("kafka://127.0.0.1:{}?{options}", own.port(0));
        let handle = runtime.handle().clone();
        Trial::ignorable_test(format!("{name}_receivers_that_come_and_go_lose_and_double_nothing"), move || {
            let Some(faults) = faults else {
                return Ok(Completion::ignored_with("set FAULTS to how often a receiver should leave"));
            };
            handle.block_on(rounds(name, &url, faults))?;
            Ok(Completion::Completed)
        })
    });
    let url = format!("kafka://127.0.0.1:{}", own.port(0));
    let named = |name: String, options: &'static str, how: Option<End>| {
        let (name, url, handle) = (name.to_lowercase(), url.clone(), runtime.handle().clone());
        Trial::ignorable_test(name.clone(), move || {
            if faults.is_none() {
                return Ok(Completion::ignored_with("set FAULTS"));
            }
            handle.block_on(async {
                match how {
                    Some(how) => static_members::comes_back(&name, &url, options, how).await,
                    None => static_members::two_with_one_id(&name, &url, options).await,
                }
            })?;
            Ok(Completion::Completed)
        })
    };
    let static_members = PROTOCOLS.into_iter().flat_map(|(protocol, options)| {
        [Some(End::Killed), Some(End::Closed), None].map(|how| match how {
            Some(how) => named(format!("{protocol}_a_static_member_{how:?}_comes_back_unnoticed"), options, Some(how)),
            None => named(format!("{protocol}_of_two_members_with_one_id_one_ends"), options, None),
        })
    });
    // With the newer protocol a member that was killed is waited for, and cannot come back until its session is over.
    let static_members = static_members.filter(|trial| !trial.name().starts_with("consumer_a_static_member_killed"));
    let trials = come_and_go.into_iter().chain(static_members).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if runs {
        runtime.block_on(own.brokers(&["down", "kafka"])).unwrap();
    }
    conclusion.exit();
}

/// What became of the messages.
#[derive(Default)]
struct Book {
    /// Who acknowledged each, and when, where that was accepted.
    acked: HashMap<String, Vec<(usize, Instant)>>,
    /// How often each was handed out.
    handed: HashMap<String, usize>,
    /// The next number that is due in each key.
    next: HashMap<u64, u64>,
    /// Who was handed a message of the partition last, and a number that changes with them.
    owners: BTreeMap<u32, (usize, u64)>,
    /// How many messages each receiver was handed.
    flow: BTreeMap<usize, usize>,
    /// Handlers without an answer yet.
    running: usize,
    /// Answers that came too late: the partition had been revoked.
    late: usize,
    /// Whose positions could not be committed when a partition was revoked, when, and why.
    refused: Vec<(usize, Instant, String)>,
    /// What must not be.
    broken: Vec<String>,
}

impl Book {
    /// A receiver was handed a message; the number that the answer must find.
    fn hand(&mut self, who: usize, delivery: &Delivery) -> u64 {
        let name = delivery.text().unwrap_or_default().to_owned();
        let partition = delivery.position().partition.unwrap_or_default();
        let (key, number) = name.split_once(':').unwrap_or_default();
        let (key, number): (u64, u64) = (key.parse().unwrap_or_default(), number.parse().unwrap_or_default());
        let next = self.next.entry(key).or_default();
        if number > *next {
            self.broken.push(format!("receiver {who} was handed {name}, where {next} was due"));
        }
        *next = (*next).max(number + 1);
        *self.handed.entry(name).or_default() += 1;
        *self.flow.entry(who).or_default() += 1;
        self.running += 1;
        let owner = self.owners.entry(partition).or_insert((who, 0));
        if owner.0 != who {
            *owner = (who, owner.1 + 1);
        }
        owner.1
    }

    /// A message was answered, which was handed out when the partition had this number.
    fn answer(&mut self, who: usize, name: String, partition: u32, number: u64, answered: Answered) {
        self.running -= 1;
        if answered != Answered::Accepted {
            self.late += 1;
            return;
        }
        let (owner, now) = self.owners[&partition];
        if now != number {
            self.broken.push(format!("receiver {who} could still ack {name} of {partition}, which {owner} had got"));
        }
        self.acked.entry(name).or_default().push((who, Instant::now()));
    }
}

/// A receiver and the task that serves it.
struct Member {
    leave: watch::Sender<Option<Duration>>,
    task: JoinHandle<Result<(), Failed>>,
}

impl Member {
    /// `who` is a number of its own for each life of a receiver.
    async fn join(url: &str, queue: &str, who: usize, book: &Arc<Mutex<Book>>) -> Result<Self, Failed> {
        let client = Client::connect_with(url, &[DRIVER]).await?;
        let mut events = client.events();
        let receiver = client.receiver(queue).prefetch(PREFETCH).await?;
        let (leave, left) = watch::channel(None);
        tokio::spawn({
            let book = book.clone();
            async move {
                while let Some(event) = events.next().await {
                    if event.kind == EventKind::AnswerFailed {
                        book.lock().refused.push((who, Instant::now(), format!("{:?}", event.error)));
                    }
                }
            }
        });
        let task = tokio::spawn(serve(client, receiver, who, book.clone(), left));
        Ok(Self { leave, task })
    }

    /// Leaves the group; handlers that run have this long.
    async fn leave(self, within: Duration) -> Result<(), Failed> {
        self.leave.send_replace(Some(within));
        timeout(PATIENCE, self.task).await??
    }
}

async fn serve(
    client: Client,
    mut receiver: Receiver,
    who: usize,
    book: Arc<Mutex<Book>>,
    mut left: watch::Receiver<Option<Duration>>,
) -> Result<(), Failed> {
    let within = loop {
        let delivery = tokio::select! {
            delivery = receiver.receive() => delivery?,
            within = left.wait_for(Option::is_some) => break within?.unwrap_or_default(),
        };
        let number = {
            let mut book = book.lock();
            // What was revoked on the way here is nobody's, and somebody else may have it by now.
            if delivery.lost().now_or_never().is_some() {
                continue;
            }
            book.hand(who, &delivery)
        };
        tokio::spawn(handle(delivery, who, number, book.clone()));
    };
    receiver.close(within).await;
    client.close(Duration::from_secs(10)).await;
    Ok(())
}

async fn handle(delivery: Delivery, who: usize, number: u64, book: Arc<Mutex<Book>>) {
    let slow = fastrand::u64(..SLOW.0) == 0;
    sleep(if slow { SLOW.1 } else { Duration::from_millis(fastrand::u64(..30)) }).await;
    let (name, partition) = (delivery.text().unwrap_or_default().to_owned(), delivery.position().partition);
    // Under the lock, so that nobody else is handed anything between the answer and its entry.
    let mut book = book.lock();
    let answered = delivery.ack();
    book.answer(who, name, partition.unwrap_or_default(), number, answered);
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

async fn rounds(protocol: &str, url: &str, rounds: usize) -> Result<(), Failed> {
    let queue = format!("rebalance-{protocol}");
    let client = Client::connect_with(url, &[DRIVER]).await?;
    let mut entry = Entry::new(Address::queue(&queue)?);
    entry.partitions = Some(PARTITIONS);
    client.declare(&Topology::from_iter([entry])).await?;
    let book = Arc::new(Mutex::new(Book::default()));
    let sending = Arc::new(AtomicBool::new(true));
    let sent = tokio::spawn(send(client.sender(queue.as_str()).await?, sending.clone()));

    let mut members: Vec<(usize, Member)> = Vec::new();
    let (mut lives, mut changes) = (0, 0);
    // All members, the new one too, are handed messages (again).
    let flows = async |members: &[(usize, Member)], what: &str| {
        let flow = |who: &usize| book.lock().flow.get(who).copied().unwrap_or_default();
        let before: Vec<_> = members.iter().map(|(who, _)| (*who, flow(who))).collect();
        until(what, || before.iter().all(|(who, count)| flow(who) >= count + FLOWS)).await
    };
    for _ in 0..RECEIVERS {
        members.push((lives, Member::join(url, &queue, lives, &book).await?));
        (lives, changes) = (lives + 1, changes + 1);
        flows(&members, "a receiver joins").await?;
    }
    for round in 0..rounds {
        let (_, member) = members.remove(0);
        // Handlers may end, or leave at once what they hold.
        member.leave(if round % 2 == 0 { Duration::from_secs(10) } else { Duration::ZERO }).await?;
        flows(&members, "the others go on").await?;
        members.push((lives, Member::join(url, &queue, lives, &book).await?));
        (lives, changes) = (lives + 1, changes + 2);
        flows(&members, "a receiver comes back").await?;
    }
    sending.store(false, Ordering::Release);
    let sent = timeout(PATIENCE, sent).await???;
    until("everything is acknowledged", || sent.iter().all(|name| book.lock().acked.contains_key(name))).await?;
    for (_, member) in members {
        member.leave(Duration::from_secs(10)).await?;
    }
    until("the last late answers", || book.lock().running == 0).await?;
    let mut rest = client.receiver(queue.as_str()).await?;
    let again = rest.receive_batch_within(1, Duration::from_secs(3)).await?;
    let book = book.lock();
    if let Some(delivery) = again.iter().next() {
        return Err(format!("{:?} comes again, and everything was acknowledged", delivery.message().text()).into());
    }
    if let Some(first) = book.broken.first() {
        return Err(format!("{first}; and so {} times", book.broken.len()).into());
    }
    let repeats: usize = book.handed.values().map(|times| times - 1).sum();
    let explains = |who: usize, at: Instant| {
        book.refused.iter().any(|(whose, when, _)| *whose == who && *when >= at && *when - at < SESSION)
    };
    let before: Vec<_> = book.acked.values().flat_map(|acks| &acks[..acks.len() - 1]).collect();
    let refused = before.iter().filter(|(who, at)| explains(*who, *at)).count();
    let doubled = before.len() - refused;
    println!(
        "{protocol}: {} messages, all acknowledged; {changes} joined or left; {repeats} handed out again (at most {}: what \
         was in flight when its partition went, and {refused} whose commit was refused), {doubled} acknowledged before; \
         commits refused: {:?}",
        sent.len(),
        book.late + refused,
        book.refused.iter().map(|(_, _, why)| why).collect::<Vec<_>>(),
    );
    if doubled > 0 || repeats > book.late + refused {
        return Err(format!("{repeats} repeats, {doubled} of them acknowledged before").into());
    }
    // With each change every receiver may lose what it was handed and had not answered.
    if book.late > changes * RECEIVERS * PREFETCH {
        return Err(format!("{} answers came too late", book.late).into());
    }
    Ok(())
}

/// Sends until it is told to stop; what was confirmed.
async fn send(sender: Sender, sending: Arc<AtomicBool>) -> Result<BTreeSet<String>, Failed> {
    let mut sent = BTreeSet::new();
    let mut next = 0;
    while sending.load(Ordering::Acquire) {
        let names: Vec<_> = (next..next + BATCH).map(|n| (n % KEYS, format!("{}:{}", n % KEYS, n / KEYS))).collect();
        next += BATCH;
        let batch = names.iter().map(|(key, name)| Message::new(name.clone()).key(key.to_string()));
        sender.send_batch(batch).await?;
        sent.extend(names.into_iter().map(|(_, name)| name));
        sleep(Duration::from_millis(50)).await;
    }
    Ok(sent)
}
