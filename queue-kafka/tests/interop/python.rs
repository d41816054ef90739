//! The programs of this folder, run by a Python that has kafka-python.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use crate::common::url;

/// Longest wait for a program, or a line of one.
const PATIENCE: Duration = Duration::from_secs(240);

/// Made at the first call; fails the test where there is no Python.
fn interpreter() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/interop");
        let output = std::process::Command::new(script).output().expect("scripts/interop runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
    })
}

/// Of a program that gets the broker's URL, and these arguments.
fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(interpreter());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    // Leaves no compiled files among the sources.
    command.arg("-B").arg(folder.join(program)).arg(url().unwrap()).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a program to its end, and gives the lines of JSON that it printed.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Vec<Value> {
    run_with(program, arguments, &Value::Null).await
}

/// The same, with a line of JSON to read.
pub(crate) async fn run_with(program: &str, arguments: &[&str], input: &Value) -> Vec<Value> {
    let mut child = command(program, arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let ends = async {
        // One that reads nothing may be gone.
        let _ = stdin.write_all(format!("{input}\n").as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await.unwrap()
    };
    let output = timeout(PATIENCE, ends).await.unwrap_or_else(|_| panic!("{program} does not end"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// All records of a topic, by partition and offset, once there are `count`.
pub(crate) async fn received(topic: &str, count: usize) -> Vec<Value> {
    let all = run("receive.py", &[topic, &count.to_string()]).await;
    assert_eq!(all.len(), count, "{all:?}");
    all
}

/// As bytes are shown.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// The value of a record, as text.
pub(crate) fn text(record: &Value) -> String {
    let hex = record["value"].as_str().unwrap();
    let bytes = (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap());
    String::from_utf8(bytes.collect()).unwrap()
}

/// A kafka-python program that is a member of a group.
pub(crate) struct Member {
    program: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Member {
    pub(crate) fn join(topic: &str, group: &str, assignors: &[&str]) -> Self {
        let arguments: Vec<_> = [topic, group].iter().chain(assignors).copied().collect();
        let mut command = command("member.py", &arguments);
        let mut program = command.stderr(Stdio::inherit()).spawn().unwrap();
        let (input, output) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
        Self { program, input, output: BufReader::new(output).lines() }
    }

    /// What it prints next: its partitions, or a record.
    pub(crate) async fn next(&mut self) -> Value {
        let line = timeout(PATIENCE, self.output.next_line()).await.expect("a member says nothing").unwrap();
        serde_json::from_str(&line.expect("a member has ended")).unwrap()
    }

    /// Ends it, and gives what else it printed.
    pub(crate) async fn leave(mut self) -> Vec<Value> {
        drop(self.input);
        let mut rest = Vec::new();
        while let Some(line) = timeout(PATIENCE, self.output.next_line()).await.expect("a member does not end").unwrap()
        {
            rest.push(serde_json::from_str(&line).unwrap());
        }
        assert!(self.program.wait().await.unwrap().success());
        rest
    }
}
