//! A proxy before the broker of the tests that knows rights.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Failure, QUICK, url};

/// Lets through what is allowed: for each queue, actions of IAM.
pub(crate) struct Proxy {
    address: std::net::SocketAddr,
    /// The actions that were refused.
    pub(crate) refused: Arc<Mutex<BTreeSet<String>>>,
}

type Allowed = BTreeMap<String, BTreeSet<String>>;

impl Proxy {
    pub(crate) async fn start(allowed: Allowed) -> Result<Self, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let refused = Arc::new(Mutex::new(BTreeSet::new()));
        let proxy = Self { address: listener.local_addr()?, refused: refused.clone() };
        let allowed = Arc::new(allowed);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, allowed.clone(), refused.clone()));
            }
        });
        Ok(proxy)
    }

    /// As that of the broker, with the proxy as its host.
    pub(crate) fn url(&self) -> Result<String, Failure> {
        let broker = url();
        let (_, options) = broker.split_once('?').ok_or("a URL with options")?;
        Ok(format!("sqs://{}?{options}{QUICK}", self.address))
    }
}

async fn serve(
    mut socket: TcpStream,
    allowed: Arc<Allowed>,
    refused: Arc<Mutex<BTreeSet<String>>>,
) -> std::io::Result<()> {
    let broker: queue_core::Endpoint = url().parse().expect("the broker's URL");
    let mut upstream = TcpStream::connect(broker.hosts[0].with_default_port(80)).await?;
    loop {
        let Some((request, head, body)) = whole(&mut socket).await? else { return Ok(()) };
        let target = field(&head, "x-amz-target:").unwrap_or_default();
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let queue = body["QueueName"].as_str().or_else(|| body["QueueUrl"].as_str()).unwrap_or_default();
        let queue = queue.rsplit('/').next().unwrap_or_default();
        let mut needs = vec![target.trim_start_matches("AmazonSQS.").trim_end_matches("Batch")];
        if body.get("tags").is_some() {
            needs.push("TagQueue");
        }
        let may = |action: &str| allowed.get(queue).is_some_and(|actions| actions.contains(action));
        if let Some(action) = needs.into_iter().find(|action| !may(action)) {
            refused.lock().expect("nobody panicked").insert(action.to_owned());
            let body =
                r#"{"__type":"com.amazon.coral.service#AccessDeniedException","message":"User is not authorized"}"#;
            let head = "HTTP/1.1 400 X\r\ncontent-type: application/x-amz-json-1.0\r\n\
                        x-amzn-query-error: AccessDenied;Sender\r\n";
            socket.write_all(format!("{head}content-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await?;
            continue;
        }
        upstream.write_all(&request).await?;
        let Some((answer, ..)) = whole(&mut upstream).await? else { return Ok(()) };
        socket.write_all(&answer).await?;
    }
}

/// A request or an answer, with its head and its body apart; `None` at the end.
async fn whole(socket: &mut TcpStream) -> std::io::Result<Option<(Vec<u8>, String, String)>> {
    let mut bytes = Vec::new();
    loop {
        if socket.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let length = field(&head, "content-length:").and_then(|n| n.parse().ok()).unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            let body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
            return Ok(Some((bytes, head, body)));
        }
    }
}

fn field(head: &str, name: &str) -> Option<String> {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name))?;
    line.split_once(':').map(|(_, value)| value.trim().to_owned())
}
