//! Group G of the conformance suite, real faults, on RabbitMQ 3.10 and on 4.3 or newer, each started by the test.
//!
//! `FAULTS=3` runs it; without the variable it says so and leaves the machine alone.

mod own;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use async_trait::async_trait;
use own::Own;
use queue_amqp::DRIVER;
use queue_core::conformance::{Fault, Harness, run_faults};
use queue_core::{Driver, Error, ErrorKind, Result};

/// How late RabbitMQ writes down that a quorum queue exists, with room: killed earlier it loses the one made last.
const WRITTEN: Duration = Duration::from_secs(2);

struct RabbitMq {
    name: &'static str,
    /// As `scripts/brokers` calls it.
    server: &'static str,
    port: u16,
    own: Own,
}

impl RabbitMq {
    async fn brokers(&self, arguments: &[&str]) -> Result<Fault> {
        match self.own.brokers(arguments).await {
            Ok(_) => Ok(Fault::Done),
            Err(why) => Err(Error::new(ErrorKind::Internal, why)),
        }
    }

    /// Has the server's own tool do this.
    async fn tool(&self, arguments: &[&str]) -> Result<Fault> {
        self.brokers(&[&["tool", self.server, "--quiet"], arguments].concat()).await
    }
}

#[async_trait]
impl Harness for RabbitMq {
    fn name(&self) -> &str {
        self.name
    }

    fn drivers(&self) -> &[Driver] {
        &[DRIVER]
    }

    fn url(&self) -> Option<String> {
        let options = "heartbeat=1s&operation_timeout=5s&connect_timeout=5s&max_backoff=500ms";
        Some(format!("amqp://guest:guest@127.0.0.1:{}?{options}", self.port))
    }

    fn upstream(&self) -> Option<SocketAddr> {
        Some(SocketAddr::from(([127, 0, 0, 1], self.port)))
    }

    async fn start(&self) -> Result<Fault> {
        self.brokers(&["start", self.server]).await
    }

    async fn kill(&self) -> Result<Fault> {
        tokio::time::sleep(WRITTEN).await;
        self.brokers(&["kill", self.server]).await
    }

    async fn restart(&self) -> Result<Fault> {
        // Returns when the process is gone.
        self.tool(&["shutdown"]).await?;
        self.start().await
    }

    async fn disconnect(&self) -> Result<Fault> {
        self.tool(&["close_all_connections", "a test of the conformance suite"]).await
    }

    async fn freeze(&self, frozen: bool) -> Result<Fault> {
        self.brokers(&[if frozen { "freeze" } else { "thaw" }, self.server]).await
    }

    async fn block(&self, blocked: bool) -> Result<Fault> {
        let watermark: &[&str] = if blocked { &["absolute", "1MB"] } else { &["0.4"] };
        self.tool(&[&["set_vm_memory_high_watermark"], watermark].concat()).await
    }
}

fn main() -> ExitCode {
    let own = Own::new("amqp-conformance-faults");
    let server = |name, server, distance| RabbitMq { name, server, port: own.port(distance), own: own.clone() };
    let result = run_faults([server("rabbitmq, faults", "rabbitmq", 0), server("rabbitmq 4, faults", "rabbitmq4", 2)]);
    if std::env::var_os("FAULTS").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if let Err(why) = runtime.map_err(|error| error.to_string()).and_then(|r| r.block_on(own.brokers(&["down"]))) {
            eprintln!("{why}");
            return ExitCode::FAILURE;
        }
    }
    result
}
