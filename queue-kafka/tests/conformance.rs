//! The conformance suite of the library, on a real broker (`ANYQUEUE_TEST_KAFKA_URL`).

use std::process::ExitCode;
use std::sync::Arc;

use queue_core::Driver;
use queue_core::conformance::{Harness, Layered, PassThrough, run};

struct Kafka;

impl Harness for Kafka {
    fn name(&self) -> &str {
        "kafka"
    }

    fn drivers(&self) -> &[Driver] {
        &[queue_kafka::DRIVER]
    }

    fn variable(&self) -> &str {
        "ANYQUEUE_TEST_KAFKA_URL"
    }
}

fn main() -> ExitCode {
    let harnesses: [Arc<dyn Harness>; 2] = [Arc::new(Kafka), Arc::new(Layered::new(Kafka, PassThrough))];
    run(harnesses)
}
