//! The programs of this folder, run by a Python that has pika.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::OnceCell;

use crate::common::soon;

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

async fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(interpreter().await);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    // Leaves no compiled files among the sources.
    command.arg("-B").arg(folder.join(program)).args(arguments).kill_on_drop(true);
    command
}

/// Runs a program to its end, and gives the lines that it printed.
pub(crate) async fn run(program: &str, arguments: &[&str]) -> Vec<String> {
    let output = soon(command(program, arguments).await.output()).await.unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Takes messages from a queue.
pub(crate) async fn received(url: &str, queue: &str, count: usize) -> Vec<Value> {
    let lines = run("receive.py", &[url, queue, &count.to_string()]).await;
    let all: Vec<_> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(all.len(), count);
    all
}

/// A pika program that declares, and is connected until this is dropped.
pub(crate) struct Declaring {
    _program: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Declaring {
    pub(crate) async fn start(url: &str) -> Self {
        let mut command = command("declare.py", &[url]).await;
        let mut program = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (program.stdin.take().unwrap(), program.stdout.take().unwrap());
        Self { _program: program, input, output: BufReader::new(output).lines() }
    }

    /// Publishes to a queue.
    pub(crate) async fn publish(&mut self, queue: &str, body: &str, properties: &Value) {
        let message = json!({"exchange": "", "routing_key": queue, "body": body, "properties": properties});
        self.call(&json!([["basic_publish", message]])).await;
    }

    /// Calls methods of a channel.
    pub(crate) async fn call(&mut self, methods: &Value) {
        self.input.write_all(format!("{methods}\n").as_bytes()).await.unwrap();
        assert_eq!(soon(self.output.next_line()).await.unwrap().as_deref(), Some("done"), "{methods}");
    }
}
