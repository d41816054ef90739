//! Traces go through brokers: spans with the names and attributes of OpenTelemetry's conventions, in one trace from an HTTP
//! request over Kafka and RabbitMQ to the last handler.
//!
//! Needs the variables that `scripts/brokers env` prints; what is left out is reported as ignored.

mod carried;
mod chain;
mod exported;

use std::process::ExitCode;

use anyqueue::Client;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// What a case comes to.
pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The URL of a broker, by the variable that holds it.
fn url(of: &str) -> Result<String, String> {
    if of.contains("://") {
        return Ok(of.to_owned());
    }
    std::env::var(of).map_err(|_| format!("set {of} to the URL of a broker"))
}

/// A client of the broker, and what tells its queues from those of other runs.
pub(crate) async fn connect(of: &str) -> Outcome<Client> {
    Ok(anyqueue::connect(&url(of)?).await?)
}

/// The name of a queue of this run.
pub(crate) fn queue(what: &str) -> String {
    format!("trace-{what}-{:x}", fastrand::u32(..))
}

const KAFKA: &str = "ANYQUEUE_TEST_KAFKA_URL";
const RABBITMQ: &str = "ANYQUEUE_TEST_AMQP_URL";
const PLACES: &[(&str, &str)] =
    &[("memory", "memory://"), ("rabbitmq", RABBITMQ), ("kafka", KAFKA), ("sqs", "ANYQUEUE_TEST_SQS_URL")];

fn main() -> ExitCode {
    exported::install();
    let mut trials = Vec::new();
    let mut case = |name: String, needs: Vec<&'static str>, run: Box<dyn FnOnce() -> Outcome + Send>| {
        trials.push(Trial::ignorable_test(name, move || match needs.iter().find_map(|of| url(of).err()) {
            None => run().map(|()| Completion::Completed).map_err(|error| Failed::from(error.to_string())),
            Some(why) if std::env::var_os("ANYQUEUE_REQUIRE_BROKERS").is_some() => Err(Failed::from(why)),
            Some(why) => Ok(Completion::ignored_with(why)),
        }));
    };
    case(
        "from_a_request_over_kafka_and_rabbitmq_it_is_one_trace".into(),
        vec![KAFKA, RABBITMQ],
        Box::new(|| block_on(chain::one_trace())),
    );
    for (name, of) in PLACES {
        case(format!("{name}/a_message_carries_its_trace"), vec![of], Box::new(|| block_on(carried::headers(of))));
        case(
            format!("{name}/copies_keep_the_trace_of_their_sender"),
            vec![of],
            Box::new(|| block_on(carried::copies(of))),
        );
        case(format!("{name}/spans_say_what_the_conventions_ask"), vec![of], Box::new(|| block_on(carried::spans(of))));
        case(
            format!("{name}/a_reply_that_cannot_be_made_is_a_failure"),
            vec![of],
            Box::new(|| block_on(carried::replies(of))),
        );
        case(format!("{name}/a_batch_has_links"), vec![of], Box::new(|| block_on(carried::batches(of))));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn block_on(case: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?.block_on(case)
}
