//! One run in a process of its own, and what it says.

use std::process::Command;
use std::time::{Duration, Instant};

/// What one process does.
#[derive(Clone)]
pub(crate) struct Run {
    pub(crate) case: String,
    /// lapin by hand, or this library.
    pub(crate) raw: bool,
    pub(crate) url: String,
    /// Of the queue.
    pub(crate) kind: String,
    /// Of the payload.
    pub(crate) size: usize,
    pub(crate) messages: usize,
    /// Messages a second, where that is given.
    pub(crate) rate: f64,
}

/// What a run took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Outcome {
    /// CPU of the process, in µs per message.
    pub(crate) cpu: f64,
    /// Messages a second.
    pub(crate) rate: f64,
    /// p50 and p99 from the time a message was due to its verdict, in µs.
    pub(crate) latency: [f64; 2],
}

const VARIABLES: [&str; 7] =
    ["BENCH_CASE", "BENCH_RAW", "BENCH_URL", "BENCH_KIND", "BENCH_SIZE", "BENCH_MESSAGES", "BENCH_RATE"];

impl Run {
    /// What this process is to do, if it is one of the runs.
    pub(crate) fn from_environment() -> Option<Self> {
        let [case, raw, url, kind, size, messages, rate] = VARIABLES.map(|name| std::env::var(name).ok());
        Some(Self {
            case: case?,
            raw: raw? == "1",
            url: url?,
            kind: kind?,
            size: size?.parse().ok()?,
            messages: messages?.parse().ok()?,
            rate: rate?.parse().ok()?,
        })
    }

    /// The name of the queue: one for both sides.
    pub(crate) fn queue(&self) -> String {
        format!("bench-{}-{}", self.kind, self.size)
    }

    /// Tells the parent.
    pub(crate) fn print(&self, outcome: Outcome) {
        let Outcome { cpu, rate, latency: [p50, p99] } = outcome;
        println!("{cpu} {rate} {p50} {p99}");
    }
}

/// Runs one side and waits for its figures.
pub(crate) fn start(run: &Run, raw: bool) -> Outcome {
    let values = [
        run.case.clone(),
        u8::from(raw).to_string(),
        run.url.clone(),
        run.kind.clone(),
        run.size.to_string(),
        run.messages.to_string(),
        run.rate.to_string(),
    ];
    let output = Command::new(std::env::current_exe().expect("this program"))
        .envs(VARIABLES.into_iter().zip(values))
        .output()
        .expect("this program starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [cpu, rate, p50, p99] = figures[..] else {
        panic!("a run failed: {text}{}", String::from_utf8_lossy(&output.stderr))
    };
    Outcome { cpu, rate, latency: [p50, p99] }
}

/// CPU that the threads of this process have used so far.
fn cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let nanos = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
        text.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
    };
    Duration::from_nanos(tasks.flatten().map(|task| nanos(task.path())).sum())
}

/// Measures what lies between its start and its end. No thread may end meanwhile.
pub(crate) struct Meter {
    cpu: Duration,
    start: Instant,
}

impl Meter {
    pub(crate) fn start() -> Self {
        Self { cpu: cpu(), start: Instant::now() }
    }

    pub(crate) fn end(self, messages: usize) -> Outcome {
        let used = (cpu() - self.cpu).as_secs_f64() * 1e6;
        let count = messages as f64;
        Outcome { cpu: used / count, rate: count / self.start.elapsed().as_secs_f64(), latency: [0.0; 2] }
    }
}
