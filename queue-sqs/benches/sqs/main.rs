//! SQS through the public handles, beside the AWS SDK fed by hand: CPU of the client's process per message.
//!
//! Each run is a process of its own (this program again), and the two sides alternate, so that noise hits both; the
//! ratio is the median over the pairs. The endpoint is the tests' own, without faults, in a process of its own. Both
//! sides do the same work: batches of ten, sixteen requests at a time, a verdict per message; every received one deleted,
//! ten at a time.
//!
//! | variable | |
//! | --- | --- |
//! | `PAIRS` | pairs of runs per case (15) |
//! | `MESSAGES` | messages per run (20,000) |
//! | `SIZES` | payloads in bytes (`64,1024`) |
//! | `THREADS` | threads of the runtime of each run (2) |
//! | `CASE` | a part of the name of the cases to run: `batch`, `tasks`, `receive` |
#![allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "figures of a benchmark are small")]

#[path = "../../../benches/common/compare.rs"]
mod compare;
#[path = "../../tests/endpoint/mod.rs"]
mod endpoint;
mod ours;
#[path = "../../../benches/common/process.rs"]
mod process;
mod raw;
mod server;

use std::process::ExitCode;

use compare::{compare, setting, title};
use process::Run;

/// The client on the other side.
const NATIVE: &str = "aws-sdk";
/// What is measured. The sending ones differ in how our side is called: batches of ten, or a thousand tasks that send
/// one message at a time; the other side sends batches of ten in both.
const CASES: [&str; 3] = ["batch", "tasks", "receive"];

fn main() -> ExitCode {
    if server::is_wanted() {
        runtime().block_on(server::serve());
        return ExitCode::SUCCESS;
    }
    if let Some(run) = Run::from_environment() {
        let work = run.clone();
        // On a worker, as a service does its work.
        let work = async move { if work.raw { raw::run(&work).await } else { ours::run(&work).await } };
        let outcome = runtime().block_on(async { tokio::spawn(work).await });
        run.print(outcome.expect("the run ends well"));
        return ExitCode::SUCCESS;
    }
    let server = server::Server::start();
    let (pairs, messages) = (setting("PAIRS", 15), setting("MESSAGES", 20_000));
    let (wanted, sizes) = (setting("CASE", String::new()), setting("SIZES", "64,1024".to_owned()));
    println!("{messages} messages a run, {pairs} pairs; µs are CPU of the client's process per message");
    title(NATIVE);
    for size in sizes.split(',').filter_map(|size| size.parse().ok()) {
        for case in CASES.into_iter().filter(|case| case.contains(&wanted)) {
            let (url, kind) = (server.url.clone(), "standard".to_owned());
            compare(&Run { case: case.to_owned(), raw: false, url, kind, size, messages, rate: 0.0 }, pairs, NATIVE);
        }
    }
    ExitCode::SUCCESS
}

fn runtime() -> tokio::runtime::Runtime {
    let threads = setting("THREADS", 2);
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().expect("a runtime")
}
