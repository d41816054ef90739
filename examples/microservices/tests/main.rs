//! The services and the proxy, started as a user does, on real brokers.
//!
//! Needs the variables that `scripts/brokers env` prints; what is left out is reported as ignored. `FULL=1` is full size.

mod away;
mod bad;
mod decided;
mod garbage;
#[path = "../../../tests/programs/http/asking.rs"]
mod http;
#[path = "../../../tests/support/proxy.rs"]
mod link;
#[path = "../../../tests/programs/process/running.rs"]
mod process;
mod proxy;
mod repeated;
mod shop;
mod stopped;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// What a case comes to.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What is to be seen on a broker with this URL.
type Case = fn(&str) -> Outcome;

/// The brokers, and the variables with their URLs.
const BROKERS: [(&str, &str); 4] = [
    ("rabbitmq", "ANYQUEUE_TEST_AMQP_URL"),
    ("kafka", "ANYQUEUE_TEST_KAFKA_URL"),
    ("rabbitmq 4", "ANYQUEUE_TEST_AMQP4_URL"),
    ("sqs", "ANYQUEUE_TEST_SQS_URL"),
];

fn main() -> ExitCode {
    let mut trials = vec![
        trial("settings", None, bad::settings),
        trial("no broker", None, away::refused),
        trial("proxy", None, proxy::passes),
        trial("bad requests/rabbitmq", Some("ANYQUEUE_TEST_AMQP_URL"), bad::requests),
        trial("cut off/rabbitmq", Some("ANYQUEUE_TEST_AMQP_URL"), away::cut_off),
        trial("database away/rabbitmq", Some("ANYQUEUE_TEST_AMQP_URL"), away::database),
        trial("queue deleted/rabbitmq 4", Some("ANYQUEUE_TEST_AMQP4_URL"), away::deleted),
    ];
    let cases: [(&str, Case); 4] = [
        ("decided", decided::all),
        ("stopped and started", stopped::catches_up),
        ("repeated", repeated::changes_nothing),
        ("garbage", garbage::dies),
    ];
    for (name, case) in cases {
        trials.extend(BROKERS.map(|(broker, variable)| trial(&format!("{name}/{broker}"), Some(variable), case)));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A case that gets the URL that this variable holds.
fn trial(name: &str, variable: Option<&'static str>, case: Case) -> Trial {
    Trial::ignorable_test(name, move || {
        let url = match variable {
            None => String::new(),
            Some(variable) => match std::env::var(variable) {
                // A service on SQS ends when its last poll has, or 5 s later.
                Ok(url) if url.starts_with("sqs") => url + "&wait_time=1s",
                Ok(url) => url,
                Err(_) if std::env::var_os("ANYQUEUE_REQUIRE_BROKERS").is_some() => {
                    return Err(format!("{variable} is not set").into());
                }
                Err(_) => return Ok(Completion::ignored_with(format!("set {variable} to the URL of a broker"))),
            },
        };
        case(&url).map(|()| Completion::Completed).map_err(|error| Failed::from(error.to_string()))
    })
}

pub(crate) fn is_full() -> bool {
    std::env::var("FULL").is_ok_and(|full| full == "1")
}

/// Runs what asks.
pub(crate) fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
