//! The pipeline, started as a user does, on the memory broker and on real ones.
//!
//! Needs the variables that `scripts/brokers env` prints; what is left out is reported as ignored. `FULL=1` has a million
//! records.

mod bad;
mod expected;
mod folder;
mod front;
mod full;
mod killed;
mod place;
#[path = "../../../../tests/programs/process/running.rs"]
mod process;
mod shown;
mod whole;
mod wrong;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// What a case comes to.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A case that gets the URL of a broker.
type Case = (&'static str, fn(&str) -> Outcome);

/// Where the URL of a broker stands; the memory broker needs none.
const BROKERS: [(&str, &str); 5] = [
    ("memory", ""),
    ("rabbitmq", "ANYQUEUE_TEST_AMQP_URL"),
    ("rabbitmq 4", "ANYQUEUE_TEST_AMQP4_URL"),
    ("kafka", "ANYQUEUE_TEST_KAFKA_URL"),
    ("sqs", "ANYQUEUE_TEST_SQS_URL"),
];

fn main() -> ExitCode {
    let cases: [Case; 3] = [("whole", whole::exact), ("killed", killed::exact), ("bad records", bad::records)];
    let mut trials: Vec<_> = cases
        .into_iter()
        .flat_map(|(case, run)| BROKERS.map(|(broker, variable)| trial(format!("{case}/{broker}"), variable, run)))
        .collect();
    let on_memory: [Case; 8] = [
        ("bad pages", bad::pages),
        ("bars", shown::bars),
        ("folder", folder::exact),
        ("a full disk", full::rolled_back),
        ("a source that changes", folder::changes),
        ("wrong arguments", wrong::arguments),
        ("wrong places", wrong::places),
        ("wrong requests", wrong::requests),
    ];
    trials.extend(on_memory.into_iter().map(|(case, run)| trial(case.to_owned(), "", run)));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A case that gets the URL that this variable holds.
fn trial(name: String, variable: &'static str, case: fn(&str) -> Outcome) -> Trial {
    Trial::ignorable_test(name, move || {
        let url = if variable.is_empty() { Ok("memory://".to_owned()) } else { std::env::var(variable) };
        match url {
            Ok(url) => case(&url).map(|()| Completion::Completed).map_err(|error| Failed::from(error.to_string())),
            Err(_) if std::env::var_os("ANYQUEUE_REQUIRE_BROKERS").is_some() => {
                Err(format!("{variable} is not set").into())
            }
            Err(_) => Ok(Completion::ignored_with(format!("set {variable} to the URL of a broker"))),
        }
    })
}

/// Runs what asks somebody.
pub(crate) fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
