//! The public conformance suite on RabbitMQ 3.10 and on 4.3 or newer; on the first also through a layer that forwards
//! every method.
//!
//! Faults are in `faults.rs`, on a broker of their own: those here are shared with other tests.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use lapin::BasicProperties;
use lapin::options::BasicPublishOptions;
use lapin::types::{AMQPValue, FieldTable};
use queue_amqp::{AmqpBroker, DRIVER};
use queue_core::conformance::{Fault, Harness, Layered, PassThrough, run};
use queue_core::wire::MAX_DEPTH;
use queue_core::{Address, Driver, Error, ErrorKind, Result};

struct RabbitMq {
    name: &'static str,
    variable: &'static str,
}

const RABBITMQ: RabbitMq = RabbitMq { name: "rabbitmq", variable: "ANYQUEUE_TEST_AMQP_URL" };
const RABBITMQ_4: RabbitMq = RabbitMq { name: "rabbitmq 4", variable: "ANYQUEUE_TEST_AMQP4_URL" };

#[async_trait]
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

    fn replayable(&self) -> &[(&str, &str)] {
        &[("x-queue-type", "stream")]
    }

    async fn inject_undecodable(&self, queue: &Address) -> Result<Fault> {
        let failed = |error: lapin::Error| Error::new(ErrorKind::Internal, error.to_string());
        let client = self.connect().await?;
        let broker: &AmqpBroker = client.broker().native().downcast_ref().expect("as documented");
        let channel = broker.open_channel().await?;
        let nested = (0..=MAX_DEPTH).fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(vec![inner].into()));
        let mut headers = FieldTable::default();
        headers.insert("nested".into(), nested);
        let properties = BasicProperties::default().with_headers(headers);
        let options = BasicPublishOptions::default();
        let published = channel.basic_publish("".into(), queue.name().into(), options, b"x", properties);
        let _ = published.await.map_err(failed)?.await.map_err(failed)?;
        // The answer comes after what was written before.
        channel.close(200, "OK".into()).await.map_err(failed)?;
        Ok(Fault::Done)
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
