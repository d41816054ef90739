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

mod ours;
mod process;
mod raw;
mod soak;

use std::process::ExitCode;

use process::{Outcome, Run};

/// What is measured; the sending ones differ in how our side is called.
const CASES: [&str; 5] = ["batch", "submit", "tasks", "receive", "latency"];

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

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
    println!(
        "{:<14} {:>7} {:>7}  {:<24} {:>8} {:>8}  rate ratio",
        "case", "ours", "lapin", "ratio", "ours/s", "lapin/s"
    );
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
            compare(&run, pairs);
        }
    }
    ExitCode::SUCCESS
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn compare(run: &Run, pairs: usize) {
    let mut both: Vec<(Outcome, Outcome)> = Vec::new();
    for pair in 0..pairs {
        // Whoever goes first finds the server as the other left it.
        both.push(if pair % 2 == 0 {
            let ours = process::start(run, false);
            (ours, process::start(run, true))
        } else {
            let raw = process::start(run, true);
            (process::start(run, false), raw)
        });
    }
    let of = |value: &dyn Fn(&(Outcome, Outcome)) -> f64| spread(both.iter().map(value).collect());
    let name = format!("{} {}", run.case, run.size);
    let (cpu, rate) = (of(&|(ours, raw)| ours.cpu / raw.cpu), of(&|(ours, raw)| ours.rate / raw.rate));
    println!(
        "{name:<14} {:>7.2} {:>7.2}  {:.3} ({:.3} to {:.3})   {:>8.0} {:>8.0}  {:.2} ({:.2} to {:.2})",
        of(&|(ours, _)| ours.cpu).1,
        of(&|(_, raw)| raw.cpu).1,
        cpu.1,
        cpu.0,
        cpu.2,
        of(&|(ours, _)| ours.rate).1,
        of(&|(_, raw)| raw.rate).1,
        rate.1,
        rate.0,
        rate.2,
    );
    if run.case == "latency" {
        for (name, index) in [("p50", 0), ("p99", 1)] {
            let ratio = of(&|(ours, raw)| ours.latency[index] / raw.latency[index]);
            println!(
                "  {name} at {:.0}/s: {:.0} µs, lapin {:.0} µs, ratio {:.3} ({:.3} to {:.3})",
                run.rate,
                of(&|(ours, _)| ours.latency[index]).1,
                of(&|(_, raw)| raw.latency[index]).1,
                ratio.1,
                ratio.0,
                ratio.2
            );
        }
    }
}

/// The quarter, the median and the three quarters.
fn spread(mut list: Vec<f64>) -> (f64, f64, f64) {
    list.sort_by(f64::total_cmp);
    (list[list.len() / 4], list[list.len() / 2], list[list.len() * 3 / 4])
}
