//! Brokers of a test's own, by `scripts/brokers`.
#![allow(dead_code)]

pub(crate) mod relay;

use std::path::{Path, PathBuf};

use tokio::process::Command;

/// A set of brokers that the test may harm; ended by `down`.
#[derive(Clone)]
pub(crate) struct Own {
    port: u16,
    folder: PathBuf,
}

impl Own {
    /// A set whose ports are taken by no other: 27192 and what follows, or as `ANYQUEUE_KAFKA_FAULTS_PORT` says.
    pub(crate) fn new(folder: &str) -> Self {
        let port = std::env::var("ANYQUEUE_KAFKA_FAULTS_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(27192);
        Self { port, folder: Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{folder}-{port}")) }
    }

    /// The port at a distance from the set's first: 0 is `kafka`, 2 to 4 `kafka-cluster`.
    pub(crate) fn port(&self, distance: u16) -> u16 {
        self.port + distance
    }

    /// Runs `scripts/brokers` with these arguments; answers what it prints.
    pub(crate) async fn brokers(&self, arguments: &[&str]) -> Result<String, String> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/brokers");
        let output = Command::new(script)
            .args(arguments)
            .env("ANYQUEUE_KAFKA_PORT", self.port.to_string())
            .env_remove("ANYQUEUE_KAFKA_CONTROLLER_PORT")
            .env("ANYQUEUE_BROKERS_DIR", &self.folder)
            .env("ANYQUEUE_BROKERS_MODE", "native")
            .output()
            .await
            .map_err(|error| format!("scripts/brokers: {error}"))?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(format!("scripts/brokers {arguments:?}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// What the broker `kafka` has written to its log since it was started, as far as a line contains `what`.
    pub(crate) fn said(&self, what: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.folder.join("kafka/broker.log")).unwrap_or_default();
        log.lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
    }
}
