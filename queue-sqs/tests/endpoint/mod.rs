//! An endpoint of SQS and SNS in the tests' own process: Amazon's protocols over HTTP on loopback, the rules of Amazon
//! where emulators have their own, and faults where they are asked for.
//!
//! It keeps no time that a test could not let pass ([`Endpoint::pass`]), and counts what it is asked. Retention, access
//! rights and the limit of messages in flight are not modelled.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

mod account;
mod actions;
mod attributes;
mod batch;
mod clock;
mod counts;
mod digest;
mod entry;
mod faults;
mod http;
mod queue;
mod receipt;
mod refusal;
mod topics;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use account::Account;
pub use counts::Counts;
pub use faults::Faults;

/// A running endpoint; it ends with this.
pub struct Endpoint {
    address: SocketAddr,
    account: Arc<Account>,
    accepting: JoinHandle<()>,
}

impl Endpoint {
    /// Starts an endpoint that answers as Amazon does when nothing is wrong.
    pub async fn start() -> std::io::Result<Self> {
        Self::with_faults(Faults::default()).await
    }

    /// Starts an endpoint that goes wrong as often as it is told.
    pub async fn with_faults(faults: Faults) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let account = Arc::new(Account::new(format!("http://{address}"), faults));
        let accepting = tokio::spawn(http::serve(listener, account.clone()));
        Ok(Self { address, account, accepting })
    }

    /// The URL by which the adapter reaches it, with further options.
    pub fn url(&self, options: &str) -> String {
        format!("sqs://{}?region=us-east-1&access_key=test&secret_key=test{options}", self.address)
    }

    /// The SDK's own client of SNS.
    #[cfg(feature = "sns")]
    pub fn topics(&self) -> aws_sdk_sns::Client {
        let config = aws_sdk_sns::Config::builder()
            .behavior_version(aws_sdk_sns::config::BehaviorVersion::v2026_01_12())
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://{}", self.address))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .build();
        aws_sdk_sns::Client::from_conf(config)
    }

    /// The SDK's own client, which repeats nothing.
    pub fn client(&self) -> Client {
        let config = aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("us-east-1"))
            .endpoint_url(format!("http://{}", self.address))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .retry_config(RetryConfig::disabled())
            .build();
        Client::from_conf(config)
    }

    /// Lets time pass at the endpoint, and nowhere else.
    pub fn pass(&self, time: Duration) {
        self.account.pass(time);
    }

    /// What it was asked so far, and which faults it made.
    pub fn counts(&self) -> Counts {
        self.account.counts()
    }

    /// The bodies of the messages that were deleted from a queue by their receivers.
    pub fn deleted(&self, queue: &str) -> Vec<String> {
        let state = self.account.state();
        state.queues.get(queue).map(|queue| queue.deleted.clone()).unwrap_or_default()
    }

    /// From now on it goes wrong as often as this says.
    pub fn set_faults(&self, faults: Faults) {
        self.account.set_faults(faults);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // Its connections are the task's own and end with it.
        self.accepting.abort();
    }
}
