//! A member with an id of its own (`group.instance.id`) that ends and comes back takes its partitions again, and the other
//! members go on as if nothing had happened.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use libtest_mimic::Failed;
use queue_core::{Address, Client, Delivery, ErrorKind, EventKind, Message, Receiver, Sender, Topology};
use queue_kafka::DRIVER;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::{PARTITIONS, PATIENCE};

/// Name the broker and the queue for the process that ends, and make it that process.
const URL: &str = "ANYQUEUE_STATIC_URL";
const QUEUE: &str = "ANYQUEUE_STATIC_QUEUE";
/// Messages of a round: each partition gets some.
const ROUND: u64 = 200;
/// How long the one that ended stays away: others are told of a change within a heartbeat, which is 5 s at most.
const AWAY: Duration = Duration::from_secs(7);

/// How the member ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With its process.
    Killed,
    /// In good order.
    Closed,
}

type Outcome<T = ()> = Result<T, Failed>;

/// Runs the process that ends, if this is one: tells what it was handed before it acknowledges it, until its input ends.
pub(crate) async fn serve() -> Option<Outcome> {
    let (Ok(url), Ok(queue)) = (std::env::var(URL), std::env::var(QUEUE)) else { return None };
    let work = async {
        let client = Client::connect_with(&url, &[DRIVER]).await?;
        let mut receiver = client.receiver(queue.as_str()).await?;
        let (end, mut ended) = oneshot::channel();
        std::thread::spawn(move || {
            std::io::stdin().lines().for_each(drop);
            end.send(())
        });
        loop {
            let delivery = tokio::select! {
                delivery = receiver.receive() => delivery?,
                _ = &mut ended => break,
            };
            let (partition, name) = place(&delivery);
            println!("{partition} {name}");
            delivery.ack();
        }
        let report = receiver.close(PATIENCE).await;
        if report.is_clean() { Ok(()) } else { Err(format!("{report:?}").into()) }
    };
    Some(work.await)
}

fn place(delivery: &Delivery) -> (u32, String) {
    (delivery.position().partition.unwrap_or_default(), delivery.text().unwrap_or_default().to_owned())
}

/// The process that ends.
struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(url: &str, queue: &str) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .envs([(URL, url), (QUEUE, queue)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".into());
        };
        Ok(Self { child, input, output: BufReader::new(output).lines() })
    }

    async fn end(mut self, how: End) -> Outcome {
        match how {
            End::Killed => self.child.kill().await?,
            End::Closed => {
                drop(self.input);
                let status = timeout(PATIENCE, self.child.wait()).await??;
                if !status.success() {
                    return Err(format!("the process ended with {status}").into());
                }
            }
        }
        Ok(())
    }

    /// Partition and name of the next message that it is handed.
    async fn next(&mut self) -> Outcome<(u32, String)> {
        let line = self.output.next_line().await?.ok_or("the process ended")?;
        let (partition, name) = line.split_once(' ').ok_or("no line of a message")?;
        Ok((partition.parse()?, name.to_owned()))
    }
}

/// What came of a round of messages: the names that each of the two was handed, by partition.
#[derive(Default)]
struct Round {
    here: BTreeMap<u32, Vec<String>>,
    there: BTreeMap<u32, Vec<String>>,
}

impl Round {
    /// Whose partitions these are; `None` while the two share one, or one has none.
    fn owners(&self) -> Option<(BTreeSet<u32>, BTreeSet<u32>)> {
        let (here, there): (BTreeSet<_>, BTreeSet<_>) =
            (self.here.keys().copied().collect(), self.there.keys().copied().collect());
        (here.is_disjoint(&there) && !here.is_empty() && !there.is_empty()).then_some((here, there))
    }
}

struct Scene {
    sender: Sender,
    receiver: Receiver,
    /// `None` while it is away.
    process: Option<Process>,
    /// What was sent so far.
    sent: u64,
    /// What the process was handed so far.
    told: BTreeSet<String>,
}

impl Scene {
    /// Sends a round; its names.
    async fn send(&mut self) -> Outcome<BTreeSet<String>> {
        let names: BTreeSet<_> = (self.sent..self.sent + ROUND).map(|n| n.to_string()).collect();
        self.sent += ROUND;
        self.sender.send_batch(names.iter().map(|name| Message::new(name.clone()).key(name.clone()))).await?;
        Ok(names)
    }

    /// Receives, on both sides, until each of the names came to somebody; what is received here is acknowledged, or kept.
    async fn receive(
        &mut self,
        names: &mut BTreeSet<String>,
        round: &mut Round,
        mut keep: impl FnMut(Delivery),
    ) -> Outcome {
        while !names.is_empty() {
            let next = async {
                match &mut self.process {
                    Some(process) => process.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                delivery = self.receiver.receive() => {
                    let delivery = delivery?;
                    let (partition, name) = place(&delivery);
                    names.remove(&name);
                    round.here.entry(partition).or_default().push(name);
                    keep(delivery);
                }
                next = next => {
                    let (partition, name) = next?;
                    names.remove(&name);
                    self.told.insert(name.clone());
                    round.there.entry(partition).or_default().push(name);
                }
            }
        }
        Ok(())
    }

    /// Sends a round, and receives it.
    async fn round(&mut self, keep: impl FnMut(Delivery)) -> Outcome<Round> {
        let (mut names, mut round) = (self.send().await?, Round::default());
        match timeout(PATIENCE, self.receive(&mut names, &mut round, keep)).await {
            Ok(received) => received.map(|()| round),
            Err(_) => Err(format!("{} messages came to nobody", names.len()).into()),
        }
    }
}

fn ack(delivery: Delivery) {
    delivery.ack();
}

/// Counts what is taken from a client.
fn revocations(client: &Client) -> Arc<AtomicUsize> {
    let (count, mut events) = (Arc::new(AtomicUsize::new(0)), client.events());
    let revoked = count.clone();
    tokio::spawn(async move {
        while let Some(event) = events.next().await {
            if event.kind == EventKind::Revoked {
                revoked.fetch_add(1, Ordering::AcqRel);
            }
        }
    });
    count
}

async fn declare(client: &Client, queue: &str) -> Outcome {
    let mut entry = queue_core::Entry::new(Address::queue(queue)?);
    entry.partitions = Some(PARTITIONS);
    client.declare(&Topology::from_iter([entry])).await?;
    Ok(())
}

/// `options` choose the protocol of the group.
pub(crate) async fn comes_back(queue: &str, url: &str, options: &str, how: End) -> Outcome {
    // Long enough for a process to come back on a busy machine. The newer protocol has the broker's, 45 s.
    let session = if options.contains("protocol") { "" } else { "&kafka.session.timeout.ms=30000" };
    let url = |id: &str| format!("{url}?{options}{session}&kafka.group.instance.id={id}");
    let client = Client::connect_with(&url("here"), &[DRIVER]).await?;
    declare(&client, queue).await?;
    let revoked = revocations(&client);
    let mut scene = Scene {
        sender: client.sender(queue).await?,
        receiver: client.receiver(queue).await?,
        process: Some(Process::start(&url("there"), queue)?),
        sent: 0,
        told: BTreeSet::new(),
    };
    // Until the group is at rest: two rounds went to the same.
    let (owners, held) = loop {
        let before = scene.round(ack).await?.owners();
        // One message of each partition stays without an answer here: whoever takes the partition takes it too.
        let mut held = BTreeMap::new();
        let keep = |delivery: Delivery| match held.entry(place(&delivery).0) {
            Entry::Vacant(vacant) => drop(vacant.insert(delivery)),
            Entry::Occupied(_) => ack(delivery),
        };
        let now = scene.round(keep).await?.owners();
        match now {
            Some(owners) if before.as_ref() == Some(&owners) => break (owners, held),
            _ => held.into_values().for_each(ack),
        }
    };
    let revoked_before = revoked.load(Ordering::Acquire);
    if let Some(process) = scene.process.take() {
        process.end(how).await?;
    }
    // A kill may repeat what was acknowledged within a commit interval, and nothing else.
    let explained = if how == End::Killed { scene.told.clone() } else { BTreeSet::new() };
    let (mut names, mut round) = (scene.send().await?, Round::default());
    let sent = names.clone();
    // Its partitions wait, as the round does.
    if let Ok(received) = timeout(AWAY, scene.receive(&mut names, &mut round, ack)).await {
        return received.and(Err("the other member was given what the one that ended had".into()));
    }
    scene.process = Some(Process::start(&url("there"), queue)?);
    match timeout(PATIENCE, scene.receive(&mut names, &mut round, ack)).await {
        Ok(received) => received?,
        Err(_) => return Err(format!("{} messages came to nobody", names.len()).into()),
    }

    if round.owners().as_ref() != Some(&owners) {
        let now = (round.here.keys().collect::<Vec<_>>(), round.there.keys().collect::<Vec<_>>());
        return Err(format!("the partitions were {owners:?}, and are {now:?}").into());
    }
    let lost = held.into_values().filter(|delivery| delivery.lost().now_or_never().is_some()).count();
    let revoked = revoked.load(Ordering::Acquire) - revoked_before;
    if lost > 0 || revoked > 0 {
        return Err(format!("{lost} messages were taken from the other member, with {revoked} events").into());
    }
    let again: Vec<_> =
        round.here.values().chain(round.there.values()).flatten().filter(|n| !sent.contains(*n)).collect();
    println!("{queue}: {} and {} partitions, {} messages again", owners.0.len(), owners.1.len(), again.len());
    if let Some(name) = again.into_iter().find(|name| !explained.contains(*name)) {
        return Err(format!("{name} came again").into());
    }
    if let Some(process) = scene.process.take() {
        process.end(End::Closed).await?;
    }
    scene.receiver.close(PATIENCE).await;
    client.close(PATIENCE).await;
    Ok(())
}

/// Of two members with one id one ends, and says so: the first, or with the newer protocol the second.
pub(crate) async fn two_with_one_id(queue: &str, url: &str, options: &str) -> Outcome {
    let url = format!("{url}?{options}&kafka.group.instance.id=one");
    let client = Client::connect_with(&url, &[DRIVER]).await?;
    declare(&client, queue).await?;
    let sender = client.sender(queue).await?;
    let mut first = client.receiver(queue).await?;
    sender.send(Message::new("to the first")).await?;
    timeout(PATIENCE, first.receive()).await??.ack();
    first.flush().await?;
    let mut second = client.receiver(queue).await?;
    let ended = async {
        tokio::select! {
            ended = first.receive() => ("first", ended),
            ended = second.receive() => ("second", ended),
        }
    };
    let (who, ended) = timeout(PATIENCE, ended).await?;
    let expected = if options.contains("protocol") { "second" } else { "first" };
    match ended {
        Err(error) if error.kind() == ErrorKind::Conflict && who == expected => {}
        other => return Err(format!("the {who} got {other:?}").into()),
    }
    sender.send(Message::new("to the other")).await?;
    let other = if who == "first" { &mut second } else { &mut first };
    timeout(PATIENCE, other.receive()).await??.ack();
    client.close(PATIENCE).await;
    Ok(())
}
