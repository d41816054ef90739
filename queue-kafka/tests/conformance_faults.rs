//! Group G of the conformance suite, real faults, on a broker of its own.
//!
//! `FAULTS=3` runs it; without the variable it says so and leaves the machine alone.
//!
//! What cannot be caused: Kafka has no state in which it takes no messages, tells its clients so and goes on otherwise, as
//! RabbitMQ does when it is short of memory. A full disk ends a broker of Kafka, too few replicas are an error of each
//! send, and quotas slow down without a word.

mod own;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use async_trait::async_trait;
use own::Own;
use own::relay::{Relay, behind};
use queue_core::conformance::{Fault, Harness, run_faults};
use queue_core::{Client, Driver, Error, ErrorKind, Result};
use queue_kafka::DRIVER;

/// Waits are shorter than the defaults, so that a fault is over sooner. What was acknowledged within a commit interval
/// before a member is lost comes again; with a short one that is less than the suite explains.
const OPTIONS: &str = "connect_timeout=5s&request_timeout=5s&commit_interval=10ms&kafka.session.timeout.ms=6000";

/// How long a killed broker stays down; then it needs three seconds and more to start. Less than that, and members of a
/// group might meet it again within their session and keep what they hold, or might not.
const DOWN: Duration = Duration::from_secs(5);

struct Kafka {
    own: Own,
    /// Clients reach the broker through this, so that their connections can be cut.
    relay: Relay,
    port: u16,
}

impl Kafka {
    async fn brokers(&self, arguments: &[&str]) -> Result<Fault> {
        match self.own.brokers(arguments).await {
            Ok(_) => Ok(Fault::Done),
            Err(why) => Err(Error::new(ErrorKind::Internal, why)),
        }
    }
}

#[async_trait]
impl Harness for Kafka {
    fn name(&self) -> &str {
        "kafka, faults"
    }

    fn drivers(&self) -> &[Driver] {
        &[DRIVER]
    }

    fn url(&self) -> Option<String> {
        Some(format!("kafka://127.0.0.1:{}?{OPTIONS}", self.port))
    }

    async fn connect_to(&self, url: &str) -> Result<Client> {
        // A link of the suite stands before the relay, and the broker's answers have to lead there.
        let link = url.parse::<queue_core::Endpoint>()?.hosts.first().map(|host| host.with_default_port(self.port));
        let port = link.and_then(|host| host.rsplit_once(':')?.1.parse().ok()).unwrap_or(self.port);
        let url = if port == self.port { url.to_owned() } else { format!("{url}&client_id={}", behind(port)) };
        Client::connect_with(&url, self.drivers()).await
    }

    fn upstream(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from(([127, 0, 0, 1], self.port)))
    }

    async fn start(&self) -> Result<Fault> {
        self.brokers(&["start", "kafka"]).await
    }

    async fn kill(&self) -> Result<Fault> {
        self.brokers(&["kill", "kafka"]).await?;
        tokio::time::sleep(DOWN).await;
        Ok(Fault::Done)
    }

    async fn restart(&self) -> Result<Fault> {
        self.brokers(&["stop", "kafka"]).await?;
        self.start().await
    }

    async fn disconnect(&self) -> Result<Fault> {
        self.relay.cut();
        Ok(Fault::Done)
    }

    async fn freeze(&self, frozen: bool) -> Result<Fault> {
        self.brokers(&[if frozen { "freeze" } else { "thaw" }, "kafka"]).await
    }
}

fn main() -> ExitCode {
    let own = Own::new("kafka-conformance-faults");
    let port = own.port(8);
    let relay = match Relay::start(port, own.port(0)) {
        Ok(relay) => relay,
        Err(why) => {
            eprintln!("no relay at port {port}: {why}");
            return ExitCode::FAILURE;
        }
    };
    let result = run_faults([Kafka { own: own.clone(), relay, port }]);
    if std::env::var_os("FAULTS").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Err(why) = runtime.map_err(|error| error.to_string()).and_then(|r| r.block_on(own.brokers(&["down"]))) {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    result
}
