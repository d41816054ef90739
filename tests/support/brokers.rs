//! A set of brokers of a test's own, by `scripts/brokers`.

use std::path::PathBuf;
use std::process::Command;

/// Brokers on ports of their own, which end with this.
pub(crate) struct Brokers {
    which: &'static str,
    envs: Vec<(&'static str, String)>,
}

impl Brokers {
    /// Starts one broker (`rabbitmq`, `kafka` or `sqs`) on ports from `port` on; waits until it answers.
    pub(crate) fn start(which: &'static str, port: u16) -> Self {
        let variable = match which {
            "rabbitmq" => "ANYQUEUE_RABBITMQ_PORT",
            "kafka" => "ANYQUEUE_KAFKA_PORT",
            _ => "ANYQUEUE_SQS_PORT",
        };
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!(".brokers/faults-{which}-{port}"));
        let envs = vec![(variable, port.to_string()), ("ANYQUEUE_BROKERS_DIR", folder.display().to_string())];
        let brokers = Self { which, envs };
        brokers.run("up");
        brokers
    }

    /// Runs `scripts/brokers ACTION NAME`.
    pub(crate) fn run(&self, action: &str) {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/brokers");
        let output = Command::new(script).args([action, self.which]).envs(self.envs.clone()).output().unwrap();
        assert!(
            output.status.success(),
            "scripts/brokers {action} {}: {}{}",
            self.which,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/brokers");
        let _ = Command::new(script).arg("down").envs(self.envs.clone()).output();
    }
}
