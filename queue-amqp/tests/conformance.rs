//! The public conformance suite on RabbitMQ: as it is, and through a layer that forwards every method.
//!
//! Faults are in `faults.rs`, on a broker of their own: the one here is shared with other tests.

use std::process::ExitCode;
use std::sync::Arc;

use queue_amqp::DRIVER;
use queue_core::Driver;
use queue_core::conformance::{Harness, Layered, PassThrough, run};

struct RabbitMq;

impl Harness for RabbitMq {
    fn name(&self) -> &str {
        "rabbitmq"
    }

    fn drivers(&self) -> &[Driver] {
        &[DRIVER]
    }

    fn variable(&self) -> &str {
        "ANYQUEUE_TEST_AMQP_URL"
    }

    // Each client is two connections, with a thread and 8 MiB each.
    fn threads(&self) -> usize {
        4
    }
}

fn main() -> ExitCode {
    let harnesses: [Arc<dyn Harness>; 2] = [Arc::new(RabbitMq), Arc::new(Layered::new(RabbitMq, PassThrough))];
    run(harnesses)
}
