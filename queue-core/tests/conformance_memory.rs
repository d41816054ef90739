//! The conformance suite on the memory broker: as it is, with the habits of each other broker, and through layers.

use std::process::ExitCode;
use std::sync::Arc;

use queue_core::conformance::{Harness, Layered, PassThrough, run};
use queue_core::testing::Recorder;
use queue_core::{Driver, memory};

struct Memory {
    name: &'static str,
    url: &'static str,
    suffix: &'static str,
}

impl Harness for Memory {
    fn name(&self) -> &str {
        self.name
    }

    fn drivers(&self) -> &[Driver] {
        &[memory::DRIVER]
    }

    fn url(&self) -> Option<String> {
        Some(self.url.to_owned())
    }

    fn suffix(&self) -> &str {
        self.suffix
    }

    // Most of them wait for a clock.
    fn threads(&self) -> usize {
        32
    }
}

fn main() -> ExitCode {
    let profile = |name, url, suffix| -> Arc<dyn Harness> { Arc::new(Memory { name, url, suffix }) };
    let plain = Memory { name: "memory", url: "memory://layered", suffix: "" };
    let recorded = |name, url, suffix| -> Arc<dyn Harness> {
        Arc::new(Layered::new(Memory { name, url, suffix }, Recorder::default()))
    };
    run([
        profile("memory", "memory://plain", ""),
        profile("memory-amqp", "memory://amqp?profile=amqp", ""),
        profile("memory-kafka", "memory://kafka?profile=kafka", ""),
        profile("memory-sqs", "memory://sqs?profile=sqs", ""),
        profile("memory-sqs-fifo", "memory://sqs-fifo?profile=sqs", ".fifo"),
        Arc::new(Layered::new(plain, PassThrough)),
        recorded("memory", "memory://recorded", ""),
        recorded("memory-amqp", "memory://recorded-amqp?profile=amqp", ""),
        recorded("memory-kafka", "memory://recorded-kafka?profile=kafka", ""),
        recorded("memory-sqs-fifo", "memory://recorded-sqs-fifo?profile=sqs", ".fifo"),
    ])
}
