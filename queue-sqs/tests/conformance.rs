//! The public conformance suite, on standard and on FIFO queues.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_sqs::types::MessageAttributeValue;
use queue_core::conformance::{Fault, Harness, run};
use queue_core::{Address, Driver, Error, ErrorKind, Result};

struct Sqs {
    name: &'static str,
    suffix: &'static str,
}

#[async_trait]
impl Harness for Sqs {
    fn name(&self) -> &str {
        self.name
    }

    fn drivers(&self) -> &[Driver] {
        &[queue_sqs::DRIVER]
    }

    fn variable(&self) -> &str {
        "ANYQUEUE_TEST_SQS_URL"
    }

    /// With short polls, so that closing a client, which waits for them, takes no longer than the tests want.
    fn url(&self) -> Option<String> {
        let url = std::env::var(self.variable()).ok().filter(|url| !url.is_empty())?;
        let quick = if url.contains('?') { "&wait_time=1s" } else { "?wait_time=1s" };
        Some(if url.contains("wait_time") { url } else { format!("{url}{quick}") })
    }

    fn suffix(&self) -> &str {
        self.suffix
    }

    async fn inject_undecodable(&self, queue: &Address) -> Result<Fault> {
        let failed = |error: String| Error::new(ErrorKind::Internal, error);
        let client = self.connect().await?;
        let sqs = client.broker().native().downcast_ref::<aws_sdk_sqs::Client>();
        let sqs = sqs.ok_or_else(|| failed("no client".to_owned()))?;
        let url = sqs.get_queue_url().queue_name(queue.name()).send().await.map_err(|e| failed(e.to_string()))?;
        let mark = MessageAttributeValue::builder().data_type("String").string_value("base64").build();
        let fifo = self.suffix == ".fifo";
        sqs.send_message()
            .set_queue_url(url.queue_url)
            .message_body("no base64!")
            .message_attributes("anyqueue-encoding", mark.map_err(|e| failed(e.to_string()))?)
            .set_message_group_id(fifo.then(|| "undecodable".to_owned()))
            .set_message_deduplication_id(fifo.then(|| "undecodable".to_owned()))
            .send()
            .await
            .map_err(|e| failed(e.to_string()))?;
        Ok(Fault::Done)
    }
}

fn main() -> ExitCode {
    let standard: Arc<dyn Harness> = Arc::new(Sqs { name: "sqs", suffix: "" });
    run([standard, Arc::new(Sqs { name: "sqs fifo", suffix: ".fifo" })])
}
