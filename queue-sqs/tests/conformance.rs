//! The public conformance suite, on standard and on FIFO queues: of a broker where there is one, and of the endpoint of
//! these tests, which keeps Amazon's rules where a broker that is at hand has others.

use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_sqs::types::MessageAttributeValue;
use queue_core::conformance::{Fault, Harness, run};
use queue_core::{Address, Driver, Error, ErrorKind, Result};

mod endpoint;

use endpoint::Endpoint;

/// Short polls, so that closing a client, which waits for them, takes no longer than the tests want.
const QUICK: &str = "wait_time=1s";

struct Sqs {
    name: &'static str,
    suffix: &'static str,
    /// The URL of the endpoint of these tests; else the environment says where a broker is.
    url: Option<String>,
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

    fn url(&self) -> Option<String> {
        let told = || std::env::var(self.variable()).ok().filter(|url| !url.is_empty());
        let url = self.url.clone().or_else(told)?;
        let joint = if url.contains('?') { '&' } else { '?' };
        Some(if url.contains("wait_time") { url } else { format!("{url}{joint}{QUICK}") })
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
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let started = runtime.and_then(|runtime| Ok((runtime.block_on(Endpoint::start())?, runtime)));
    let (endpoint, _runtime) = match started {
        Ok(started) => started,
        Err(error) => {
            eprintln!("no endpoint: {error}");
            return ExitCode::FAILURE;
        }
    };
    let own = || Some(endpoint.url(&format!("&{QUICK}")));
    let harnesses = [
        Sqs { name: "sqs", suffix: "", url: None },
        Sqs { name: "sqs fifo", suffix: ".fifo", url: None },
        Sqs { name: "endpoint", suffix: "", url: own() },
        Sqs { name: "endpoint fifo", suffix: ".fifo", url: own() },
    ];
    run(harnesses.map(|harness| Arc::new(harness) as Arc<dyn Harness>))
}
