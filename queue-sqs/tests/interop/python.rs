//! The programs of this folder, run by a Python that has boto3.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::support::url;

/// Longest wait for a program.
const PATIENCE: Duration = Duration::from_secs(240);

/// Made at the first call; fails the test where there is no Python.
async fn interpreter() -> &'static Path {
    static PATH: OnceCell<PathBuf> = OnceCell::const_new();
    let make = || async {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/interop");
        let output = Command::new(script).output().await.expect("scripts/interop runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
    };
    PATH.get_or_init(make).await
}

/// Runs a program, which gets the broker's URL and these arguments, and gives the lines of JSON that it printed.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    let mut command = Command::new(interpreter().await);
    // Leaves no compiled files among the sources.
    command.arg("-B").arg(folder.join(program)).arg(url()).args(arguments).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("the program ends").expect("it runs");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What boto3 takes from a queue.
pub(crate) async fn received(queue: &str, count: usize) -> Vec<Value> {
    let all = run("receive.py", &[queue, &count.to_string()]).await;
    assert_eq!(all.len(), count, "{all:?}");
    all
}

/// As bytes are shown.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}
