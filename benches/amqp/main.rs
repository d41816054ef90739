//! RabbitMQ through the public handles, beside lapin fed by hand: CPU of the client's process per message.
//!
//! Each run is a process of its own (this program again), and the two sides alternate, so that noise hits both; the
//! ratio is the median over the pairs. Both sides do the same work: persistent messages with an id to one durable
//! queue, `mandatory`, confirmations, a verdict per message; an owned payload of each received one, every one acked.
//!
//! | variable | |
//! | --- | --- |
//! | `ANYQUEUE_TEST_AMQP_URL` | the server |
//! | `PAIRS` | pairs of runs per case (15) |
//! | `MESSAGES` | messages per run (100,000) |
//! | `SIZES` | payloads in bytes (`64,1024`) |
//! | `QUEUE` | `quorum` (default) or `classic` |
//! | `CASE` | a part of the name of the cases to run: `batch`, `submit`, `tasks`, `receive`, `latency` |
//! | `SOAK` | instead: so many messages through one client, which fails unless memory, threads and sockets stay flat |
//! | `RATE` | messages a second of the latency case (half of what raw lapin reached in this run) |
#![allow(clippy::cast_possible_truncation, reason = "figures of a benchmark are small")]

#[path = "../common/compare.rs"]
mod compare;
mod latency;
mod ours;
#[path = "../common/process.rs"]
mod process;
mod raw;
#[path = "../common/send.rs"]
mod send;
mod soak;

use std::process::ExitCode;

use compare::{compare, setting, title};
use process::Run;

/// The client on the other side.
const NATIVE: &str = "lapin";
/// What is measured; the sending ones differ in how our side is called.
const CASES: [&str; 5] = ["batch", "submit", "tasks", "receive", "latency"];

fn main() -> ExitCode {
    if let Some(run) = Run::from_environment() {
        let work = run.clone();
        // On a worker, as a service does its work.
        let work = async move { if work.raw { raw::run(&work).await } else { ours::run(&work).await } };
        let outcome = runtime().block_on(async { tokio::spawn(work).await });
        run.print(outcome.expect("the run ends well"));
        return ExitCode::SUCCESS;
    }
    let Ok(url) = std::env::var("ANYQUEUE_TEST_AMQP_URL") else {
        eprintln!("ANYQUEUE_TEST_AMQP_URL is not set: start a server with scripts/brokers up rabbitmq");
        return ExitCode::FAILURE;
    };
    let (pairs, messages) = (setting("PAIRS", 15), setting("MESSAGES", 100_000));
    let (wanted, kind) = (setting("CASE", String::new()), setting("QUEUE", "quorum".to_owned()));
    let soak = setting("SOAK", 0);
    if soak > 0 {
        let faults =
            runtime().block_on(async { tokio::spawn(async move { soak::run(&url, &kind, soak).await }).await });
        let faults = faults.expect("the soak ends well");
        faults.iter().for_each(|fault| eprintln!("{fault}"));
        return if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let sizes = setting("SIZES", "64,1024".to_owned());
    println!("{messages} messages a run, {pairs} pairs, {kind} queue; µs are CPU of the client's process per message");
    title(NATIVE);
    for size in sizes.split(',').filter_map(|size| size.parse().ok()) {
        let mut rate = setting("RATE", 0.0);
        for case in CASES.into_iter().filter(|case| case.contains(&wanted)) {
            let mut run =
                Run { case: case.to_owned(), raw: false, url: url.clone(), kind: kind.clone(), size, messages, rate };
            if case == "latency" {
                if rate == 0.0 {
                    run.case = "batch".to_owned();
                    run.rate = process::start(&run, true).rate / 2.0;
                    run.case = case.to_owned();
                    rate = run.rate;
                }
                // A few seconds.
                run.messages = (run.rate * 3.0) as usize;
            }
            if case == "receive" {
                // It is the fastest, and our side opens its receiver within the time.
                run.messages = messages * 4;
            }
            compare(&run, pairs, NATIVE);
        }
    }
    ExitCode::SUCCESS
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}
