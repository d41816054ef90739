//! The endpoint in a process of its own, so that its work is not counted.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::endpoint::Endpoint;

const WANTED: &str = "BENCH_ENDPOINT";

/// Whether this process is to be the endpoint.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(WANTED).is_some()
}

/// Tells its URL, and serves until whoever started it is gone.
pub(crate) async fn serve() {
    let endpoint = Endpoint::start().await.expect("a port");
    println!("{}", endpoint.url(""));
    let gone = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let _ = gone.await;
}

/// A running endpoint; it ends with this.
pub(crate) struct Server {
    pub(crate) url: String,
    child: Child,
    /// Stays open: the endpoint may say more.
    _said: BufReader<ChildStdout>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .env(WANTED, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        // The endpoint says other things, too.
        let mut said = BufReader::new(child.stdout.take().expect("it is piped"));
        let told = said.by_ref().lines().map_while(Result::ok).find(|line| line.starts_with("sqs://"));
        Self { url: told.expect("the endpoint tells its URL"), child, _said: said }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
