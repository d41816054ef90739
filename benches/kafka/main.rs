//! Kafka through the public handles, beside rdkafka fed by hand: CPU of the client's process per message.
//!
//! Each run is a process of its own (this program again), and the two sides alternate, so that noise hits both; the
//! ratio is the median over the pairs. Both sides do the same work: idempotent sends with `acks=all` and a verdict per
//! message; an owned payload of each received one, and what was acknowledged committed while it goes on. Both have the
//! client's own settings otherwise, which the library changes here and there: `linger.ms`, `queued.min.messages`.
//!
//! | variable | |
//! | --- | --- |
//! | `ANYQUEUE_TEST_KAFKA_URL` | the cluster |
//! | `PAIRS` | pairs of runs per case (15) |
//! | `MESSAGES` | messages per run (500,000) |
//! | `SIZES` | payloads in bytes (`64,1024`) |
//! | `CASE` | a part of the name of the cases to run: `batch`, `submit`, `receive`; `keys` is a benchmark of its own, see `keys.rs` |
#![allow(clippy::cast_possible_truncation, reason = "figures of a benchmark are small")]

#[path = "../common/compare.rs"]
mod compare;
mod keys;
mod nap;
mod ours;
#[path = "../common/process.rs"]
mod process;
mod raw;
#[path = "../common/send.rs"]
mod send;

use std::process::ExitCode;

use compare::{compare, setting, title};
use process::Run;

/// The client on the other side.
const NATIVE: &str = "rdkafka";
/// What is measured; the sending ones differ in how our side is called.
const CASES: [&str; 3] = ["batch", "submit", "receive"];
/// Of the topics.
const PARTITIONS: u32 = 4;

fn main() -> ExitCode {
    if let Some(run) = Run::from_environment() {
        let outcome = if run.raw { raw::run(&run) } else { ours_on_a_worker(&run) };
        run.print(outcome);
        return ExitCode::SUCCESS;
    }
    let Ok(url) = std::env::var("ANYQUEUE_TEST_KAFKA_URL") else {
        eprintln!("ANYQUEUE_TEST_KAFKA_URL is not set: start a cluster with scripts/brokers up kafka");
        return ExitCode::FAILURE;
    };
    let wanted = setting("CASE", String::new());
    if wanted == "keys" {
        return keys::compare(&url);
    }
    let url = format!("{url}?partitions={PARTITIONS}");
    let (pairs, messages) = (setting("PAIRS", 15), setting("MESSAGES", 500_000));
    let sizes = setting("SIZES", "64,1024".to_owned());
    println!("{messages} messages a run, {pairs} pairs; µs are CPU of the client's process per message");
    title(NATIVE);
    for size in sizes.split(',').filter_map(|size| size.parse().ok()) {
        for case in CASES.into_iter().filter(|case| case.contains(&wanted)) {
            // Each has a topic of its own, and what is received is put there once.
            let kind = if case == "receive" { format!("receive-{}", std::process::id()) } else { "send".to_owned() };
            let run = Run { case: case.to_owned(), raw: false, url: url.clone(), kind, size, messages, rate: 0.0 };
            process::start(
                &Run { case: if case == "receive" { "fill" } else { "declare" }.to_owned(), ..run.clone() },
                false,
            );
            compare(&run, pairs, NATIVE);
        }
    }
    ExitCode::SUCCESS
}

/// On a worker, as a service does its work.
fn ours_on_a_worker(run: &Run) -> process::Outcome {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let work = run.clone();
    runtime.block_on(async { tokio::spawn(async move { ours::run(&work).await }).await }).expect("the run ends well")
}
