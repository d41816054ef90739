//! The public conformance suite, on standard and on FIFO queues: of brokers where there are any, and of the endpoint of
//! these tests, which keeps Amazon's rules where a broker that is at hand has others. ElasticMQ has no topics; Moto has,
//! and is too slow for the rest.

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
/// ElasticMQ's URL, and that of a broker that speaks SNS too.
const SQS: &str = "ANYQUEUE_TEST_SQS_URL";
const SNS: &str = "ANYQUEUE_TEST_SNS_URL";
const NO_TOPICS: &str = "sns_endpoint=none";

struct Sqs {
    name: &'static str,
    suffix: &'static str,
    /// Options of the URL.
    options: &'static str,
    place: Place,
}

enum Place {
    /// The URL of the endpoint of these tests.
    Endpoint(String),
    /// The variable that says where a broker is.
    Variable(&'static str),
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
        match self.place {
            Place::Endpoint(_) => "",
            Place::Variable(name) => name,
        }
    }

    fn url(&self) -> Option<String> {
        let url = match &self.place {
            Place::Endpoint(url) => url.clone(),
            Place::Variable(name) => std::env::var(name).ok().filter(|url| !url.is_empty())?,
        };
        let options = [QUICK, self.options]
            .into_iter()
            .filter(|option| !option.is_empty() && !url.contains(option.split('=').next().unwrap_or_default()));
        Some(options.fold(url.clone(), |url, option| {
            let joint = if url.contains('?') { '&' } else { '?' };
            format!("{url}{joint}{option}")
        }))
    }

    fn suffix(&self) -> &str {
        self.suffix
    }

    fn runs(&self, case: &str) -> bool {
        // A slow server, and there for what no other has: the rest is run on the others.
        !matches!(self.place, Place::Variable(SNS)) || case.starts_with("c_topics/") || case.contains("group")
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
    let own = || Place::Endpoint(endpoint.url(""));
    let mut harnesses = vec![
        Sqs { name: "sqs", suffix: "", options: NO_TOPICS, place: Place::Variable(SQS) },
        Sqs { name: "sqs fifo", suffix: ".fifo", options: NO_TOPICS, place: Place::Variable(SQS) },
        Sqs { name: "endpoint", suffix: "", options: "", place: own() },
        Sqs { name: "endpoint fifo", suffix: ".fifo", options: "", place: own() },
    ];
    if cfg!(feature = "sns") {
        harnesses.extend([
            Sqs { name: "sns", suffix: "", options: "", place: Place::Variable(SNS) },
            Sqs { name: "sns fifo", suffix: ".fifo", options: "", place: Place::Variable(SNS) },
        ]);
    }
    run(harnesses.into_iter().map(|harness| Arc::new(harness) as Arc<dyn Harness>))
}
