//! Moves everything from one broker to another: RabbitMQ to Kafka, Kafka to SQS, whatever has a URL.
//!
//! ```sh
//! cargo run --example relay --features full -- amqp://localhost orders kafka://localhost:9092 orders
//! cargo run --example relay --features full -- kafka://localhost:9092 topic:invoices amqp://localhost invoices --group relay
//! ```
//! A message is taken from the one when the other has confirmed it: nothing is lost, and one may come twice. One batch goes after
//! the other, so that order is kept where both brokers have one; where messages have keys, each key for itself. While the other
//! broker does not take anything, messages wait here, and no attempt is counted; after ten minutes of that, or when it takes
//! nothing for a reason that does not pass, the program gives back what it has and ends with an error, to be started again.
//!
//! What the other broker has no room or no word for is a dead letter of the first, with the reason; only a time to live and a
//! priority are left behind, and the library's own notes. Ends at Ctrl-C or `SIGTERM`, or, with `--idle SECONDS`, when nothing has
//! come for so long. Success is when nothing is left, and nothing became a dead letter.

use std::ffi::OsString;
use std::process::{ExitCode, Termination};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyqueue::worker::{Batches, Control, Failure, Job, Worker, signal};
use anyqueue::{Capabilities, Client, Error, ErrorKind, Message, Ordering, Receiver, Result, Sender, Source};
use tokio::time::sleep;

const USAGE: &str = "usage: relay FROM_URL FROM TO_URL TO [--group NAME] [--idle SECONDS]";
/// Messages that go together.
const BATCH: usize = 256;
/// How long the other broker may take nothing.
const PATIENCE: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_secs(1);
/// Names of the library's own notes begin so.
const NOTES: &str = "anyqueue-";

/// What is asked for.
#[derive(Default)]
struct Asked {
    route: Vec<String>,
    group: Option<String>,
    idle: Option<Duration>,
}

impl Asked {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut asked = Self::default();
        while let Some(argument) = arguments.next() {
            match &*argument {
                "--group" => asked.group = Some(arguments.next().ok_or("--group takes a name")?),
                "--idle" => {
                    let seconds =
                        arguments.next().and_then(|seconds| seconds.parse().ok()).filter(|seconds| *seconds > 0);
                    asked.idle = Some(Duration::from_secs(seconds.ok_or("--idle takes whole seconds from 1 on")?));
                }
                other if other.starts_with("--") => return Err(format!("unknown option {other}\n{USAGE}")),
                _ => asked.route.push(argument),
            }
        }
        let [from_url, from, to_url, to] = &asked.route[..] else { return Err(USAGE.to_owned()) };
        if from_url == to_url && from == to {
            return Err("that is from one place to the same".to_owned());
        }
        if from.starts_with("topic:") && asked.group.is_none() {
            return Err("a topic needs a --group, by which the broker knows what was taken".to_owned());
        }
        Ok(asked)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Result<Vec<_>, _> = std::env::args_os().skip(1).map(OsString::into_string).collect();
    let no_text = |argument: OsString| format!("{} is no text", argument.display());
    let (why, code) = match arguments.map_err(no_text).and_then(|all| Asked::read(all.into_iter())) {
        Err(why) => (why, ExitCode::from(2)),
        Ok(asked) => match run(asked).await {
            Ok(code) => return code,
            Err(error) => (error.to_string(), ExitCode::FAILURE),
        },
    };
    eprintln!("{why}");
    code
}

async fn run(asked: Asked) -> Result<ExitCode> {
    let [from_url, from, to_url, to] = &asked.route[..] else { return Ok(ExitCode::from(2)) };
    let (source, target) = (anyqueue::connect(from_url).await?, anyqueue::connect(to_url).await?);
    let mut place = Source::new(from.parse()?);
    place.group = asked.group.as_deref().map(Arc::from);
    // A name that is mistyped is found here, and not made.
    source.stats(&place).await?;
    let sender = target.sender(&**to).await?;
    let receiver = open(&source, from, asked.group.as_deref()).await?;

    let worker = Worker::new(receiver).concurrency(1);
    let control = worker.control();
    let hopeless = Arc::new(OnceLock::new());
    let relay = Relay { sender, control: control.clone(), hopeless: hopeless.clone() };
    let worker = worker.until(async move {
        tokio::select! {
            () = signal() => {}
            () = over(control, asked.idle) => {}
        }
    });
    let report = worker.serve_batches(Batches::of(BATCH), move |batch| relay.clone().take(batch)).await;

    let counts = report.counts;
    println!("moved {}, dead letters {}, expired {}", counts.processed, counts.dead_lettered, counts.expired);
    let mut code = report.report();
    if let Some(error) = hopeless.get() {
        eprintln!("{to_url} takes nothing: {error}");
        code = ExitCode::FAILURE;
    }
    let left = source.stats(&place).await.ok().and_then(|stats| stats.ready).unwrap_or_default();
    if left > 0 {
        eprintln!("{left} messages are left");
    }
    if left > 0 || counts.dead_lettered > 0 {
        code = ExitCode::FAILURE;
    }
    target.close(Duration::from_secs(5)).await;
    source.close(Duration::from_secs(5)).await;
    Ok(code)
}

/// A receiver in the order of keys, where the broker hands messages out so.
async fn open(source: &Client, from: &str, group: Option<&str>) -> Result<Receiver> {
    let opening = || {
        // No number of attempts makes a dead letter of what waits for another broker.
        let receiver = source.receiver(from).prefetch(4 * BATCH).max_deliveries(u32::MAX);
        match group {
            Some(group) => receiver.group(group),
            None => receiver,
        }
    };
    match opening().ordering(Ordering::PerKey).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => opening().await,
        opened => opened,
    }
}

#[derive(Clone)]
struct Relay {
    sender: Sender,
    control: Control,
    /// Why the other broker takes nothing.
    hopeless: Arc<OnceLock<Error>>,
}

impl Relay {
    /// Sends a batch until each of its messages has a verdict that stays.
    async fn take(self, batch: Vec<Job>) -> Vec<Result<(), Failure>> {
        let able = self.sender.capabilities();
        let messages: Vec<_> = batch.into_iter().map(|job| fitted(job.into_message(), &able)).collect();
        let mut results: Vec<_> = messages.iter().map(|_| Ok(())).collect();
        let mut left: Vec<usize> = (0..messages.len()).collect();
        let began = Instant::now();
        while let Err(error) = self.sender.send_batch(left.iter().map(|index| messages[*index].clone())).await {
            let mut again = Vec::new();
            for (position, error) in error.failures() {
                let index = left[position];
                match error.kind() {
                    ErrorKind::TooLarge | ErrorKind::Unsupported | ErrorKind::InvalidInput | ErrorKind::Codec => {
                        results[index] = Err(Failure::permanent(error));
                    }
                    ErrorKind::Connection | ErrorKind::Timeout | ErrorKind::Throttled | ErrorKind::Rejected
                        if began.elapsed() < PATIENCE =>
                    {
                        again.push(index);
                    }
                    _ => return self.give_up(error).await,
                }
            }
            left = again;
            if left.is_empty() {
                break;
            }
            sleep(PAUSE).await;
        }
        results
    }

    /// Ends the program; what is here is given back by the drain.
    async fn give_up<T>(&self, error: Error) -> T {
        self.hopeless.get_or_init(|| error);
        self.control.stop();
        std::future::pending().await
    }
}

/// The message as the other broker can have it: without what says how long it lives and how much it hurries, where there is no such
/// thing, and without the library's own notes on where it has been.
fn fitted(mut message: Message, able: &Capabilities) -> Message {
    let foreign = (!able.ttl && message.get_ttl().is_some()) || (!able.priority && message.get_priority().is_some());
    if foreign {
        message = copy(&message);
    }
    message.headers_mut().retain(|name, _| !name.starts_with(NOTES));
    message
}

/// A message without its time to live and its priority.
fn copy(message: &Message) -> Message {
    let mut copy = Message::new(message.payload().clone());
    *copy.headers_mut() = message.headers().clone();
    if let Some(key) = message.get_key() {
        copy = copy.key(key.clone());
    }
    if let Some(timestamp) = message.get_timestamp() {
        copy = copy.timestamp(timestamp);
    }
    let mut text = |text: Option<&str>, set: fn(Message, String) -> Message| {
        if let Some(text) = text {
            copy = set(std::mem::take(&mut copy), text.to_owned());
        }
    };
    text(message.get_id(), Message::id);
    text(message.get_subject(), Message::subject);
    text(message.get_content_type(), Message::content_type);
    text(message.get_correlation_id(), Message::correlation_id);
    text(message.get_reply_to(), Message::reply_to);
    copy
}

/// Resolves when nothing has come for so long.
async fn over(control: Control, idle: Option<Duration>) {
    let Some(idle) = idle else { return std::future::pending().await };
    let (mut before, mut since) = (None, Instant::now());
    while since.elapsed() < idle {
        let counts = control.counts();
        let now = (counts.processed, counts.failed, counts.expired);
        if before.replace(now) != Some(now) || control.running() > 0 {
            since = Instant::now();
        }
        sleep(Duration::from_millis(100)).await;
    }
}
