//! The programs of `examples`, started as a user does, on real brokers and beside the plain Python programs of the same purpose.
//!
//! Needs the variables that `scripts/brokers env` prints; what is left out is reported as ignored. The programs are built by
//! `cargo test` or `cargo build --examples`.

mod browser;
mod hello;
mod http;
mod process;
mod relay;
mod tasks;
mod web;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// What a case comes to.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

pub(crate) const AMQP: &str = "ANYQUEUE_TEST_AMQP_URL";
pub(crate) const AMQP4: &str = "ANYQUEUE_TEST_AMQP4_URL";
pub(crate) const KAFKA: &str = "ANYQUEUE_TEST_KAFKA_URL";
pub(crate) const SQS: &str = "ANYQUEUE_TEST_SQS_URL";

fn main() -> ExitCode {
    let trials = vec![
        trial("hello/rabbitmq", &[AMQP], hello::rabbitmq),
        trial("hello/rabbitmq 4", &[AMQP4], hello::rabbitmq4),
        trial("hello/kafka", &[KAFKA], hello::kafka),
        trial("hello/sqs", &[SQS], hello::sqs),
        trial("hello/wrong arguments", &[], hello::wrong),
        trial("relay/rabbitmq to kafka", &[AMQP, KAFKA], relay::moves),
        trial("relay/kafka to sqs", &[KAFKA, SQS], relay::moves),
        trial("relay/sqs to rabbitmq 4", &[SQS, AMQP4], relay::moves),
        trial("relay/tells what it cannot", &[AMQP, SQS], relay::tells),
        trial("relay/wrong arguments", &[], relay::wrong),
        trial("tasks/rabbitmq", &[AMQP], tasks::answered),
        trial("tasks/kafka", &[KAFKA], tasks::answered),
        trial("tasks/sqs", &[SQS], tasks::answered),
        trial("tasks/no worker", &[AMQP4], tasks::too_late),
        trial("web/memory", &[], web::on_memory),
        trial("web/rabbitmq", &[AMQP], web::works),
        trial("web/kafka", &[KAFKA], web::works),
        trial("web/sqs", &[SQS], web::works),
        trial("web/wrong settings", &[], web::wrong),
        trial("web/in a browser", &[AMQP], browser::page),
        trial("tasks/wrong arguments", &[], tasks::wrong),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A case that gets the URLs that these variables hold.
fn trial(name: &str, variables: &'static [&str], case: fn(&[String]) -> Outcome) -> Trial {
    Trial::ignorable_test(name, move || {
        let urls: Result<Vec<_>, _> = variables.iter().map(|name| std::env::var(name).map_err(|_| *name)).collect();
        match urls {
            Ok(urls) => case(&urls).map(|()| Completion::Completed).map_err(|error| Failed::from(error.to_string())),
            Err(name) if std::env::var_os("ANYQUEUE_REQUIRE_BROKERS").is_some() => {
                Err(format!("{name} is not set").into())
            }
            Err(name) => Ok(Completion::ignored_with(format!("set {name} to the URL of a broker"))),
        }
    })
}

/// Runs what asks a broker.
pub(crate) fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
