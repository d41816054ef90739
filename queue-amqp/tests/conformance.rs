//! The public conformance suite on RabbitMQ 3.10 and on 4.3 or newer; on the first also through a layer that forwards
//! every method.
//!
//! Faults are in `faults.rs`, on a broker of their own: those here are shared with other tests.

use std::process::ExitCode;
use std::sync::Arc;

use queue_amqp::DRIVER;
use queue_core::Driver;
use queue_core::conformance::{Harness, Layered, PassThrough, run};

struct RabbitMq {
    name: &'static str,
    variable: &'static str,
}

const RABBITMQ: RabbitMq = RabbitMq { name: "rabbitmq", variable: "ANYQUEUE_TEST_AMQP_URL" };
const RABBITMQ_4: RabbitMq = RabbitMq { name: "rabbitmq 4", variable: "ANYQUEUE_TEST_AMQP4_URL" };

impl Harness for RabbitMq {
    fn name(&self) -> &str {
        self.name
    }

    fn drivers(&self) -> &[Driver] {
        &[DRIVER]
    }

    fn variable(&self) -> &str {
        self.variable
    }

    // Each client is two connections, with a thread and 8 MiB each.
    fn threads(&self) -> usize {
        4
    }
}

fn main() -> ExitCode {
    let layered = Layered::new(RABBITMQ, PassThrough);
    let harnesses: [Arc<dyn Harness>; 3] = [Arc::new(RABBITMQ), Arc::new(RABBITMQ_4), Arc::new(layered)];
    run(harnesses)
}
