//! Many messages through one client, while memory, threads and sockets are looked at.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyqueue::{Declare, Message};
use tokio::sync::Semaphore;

use crate::process::Run;
use crate::raw::{PREFETCH, declare};

const BATCH: usize = 256;
/// Messages that are sent and not yet received, so that the server holds no more.
const BACKLOG: usize = 64 * BATCH;
/// Samples in all; the first fifth of the time is for warming up.
const SAMPLES: usize = 20;
/// What the resident memory may grow by after that, whatever the number of messages.
const GROWTH: u64 = 32 << 20;
/// Longest time without any message.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the process holds.
#[derive(Debug, Clone, Copy)]
struct Sample {
    resident: u64,
    threads: usize,
    sockets: usize,
}

impl Sample {
    fn take() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap_or_default();
            line.split_whitespace().nth(1).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
        };
        let files = std::fs::read_dir("/proc/self/fd").expect("Linux").flatten();
        let is_socket = |path: std::path::PathBuf| {
            std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        Self {
            resident: field("VmRSS:") << 10,
            threads: std::fs::read_dir("/proc/self/task").expect("Linux").count(),
            sockets: files.filter(|file| is_socket(file.path())).count(),
        }
    }
}

/// Sends and receives `messages`; answers what was not flat.
pub(crate) async fn run(url: &str, kind: &str, messages: usize) -> Vec<String> {
    let run = Run {
        case: "soak".to_owned(),
        raw: false,
        url: url.to_owned(),
        kind: kind.to_owned(),
        size: 64,
        messages,
        rate: 0.0,
    };
    declare(&run).await;
    let client = anyqueue::connect(url).await.expect("the server answers");
    let sender = client.sender(run.queue()).declare(Declare::Assume).await.expect("a sender");
    let receiver = client.receiver(run.queue()).prefetch(PREFETCH.into()).declare(Declare::Assume);
    let mut receiver = receiver.discard_dead_letters().await.expect("a receiver");
    let room = Arc::new(Semaphore::new(BACKLOG));
    let sending = tokio::spawn({
        let room = room.clone();
        async move {
            let mut next = 0_u64;
            while next < messages as u64 {
                let count = (messages as u64 - next).min(BATCH as u64);
                room.acquire_many(u32::try_from(count).expect("a batch")).await.expect("open").forget();
                // A number each, in 64 bytes that are the message's own.
                let message = |n: u64| {
                    let mut payload = vec![7; 64];
                    payload[..8].copy_from_slice(&n.to_be_bytes());
                    Message::new(payload)
                };
                sender.send_batch((next..next + count).map(message)).await.expect("the broker takes them");
                next += count;
            }
        }
    });
    // Not zero, so that it is resident from the start.
    let (mut missing, mut received) = (vec![true; messages], 0);
    let (mut samples, start) = (Vec::new(), Instant::now());
    while received < messages {
        let batch = receiver.receive_batch_within(BATCH, PATIENCE).await.expect("messages");
        assert!(!batch.is_empty(), "nothing came for {PATIENCE:?}, {received} of {messages} received");
        for message in batch.iter() {
            let number = u64::from_be_bytes(message.payload()[..8].try_into().expect("eight bytes"));
            let number = usize::try_from(number).expect("a number of ours");
            assert!(std::mem::replace(&mut missing[number], false), "message {number} came twice");
        }
        received += batch.len();
        room.add_permits(batch.len());
        batch.ack();
        if received >= (samples.len() + 1) * messages / SAMPLES {
            let sample = Sample::take();
            println!(
                "{received} messages after {:.0?}: {:.1} MiB, {} threads, {} sockets",
                start.elapsed(),
                sample.resident as f64 / f64::from(1 << 20),
                sample.threads,
                sample.sockets
            );
            samples.push(sample);
        }
    }
    sending.await.expect("every send is confirmed");
    receiver.flush().await.expect("every ack is with the broker");
    client.close(Duration::from_secs(10)).await;
    let (warm, last) = (samples[SAMPLES / 5 - 1], samples[samples.len() - 1]);
    let mut faults = Vec::new();
    if last.resident > warm.resident + GROWTH {
        faults.push(format!("memory grew from {} to {} bytes", warm.resident, last.resident));
    }
    if last.threads > warm.threads {
        faults.push(format!("threads grew from {} to {}", warm.threads, last.threads));
    }
    if last.sockets > warm.sockets {
        faults.push(format!("sockets grew from {} to {}", warm.sockets, last.sockets));
    }
    faults
}
