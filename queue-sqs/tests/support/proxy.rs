//! A proxy before a broker that knows no rights: it refuses what is not allowed, in Amazon's words.
#![allow(unreachable_pub, reason = "test binaries share it")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// For each queue and topic, actions of IAM.
pub type Allowed = BTreeMap<String, BTreeSet<String>>;

/// Lets through what is allowed.
pub struct Proxy {
    url: String,
    refused: Arc<Mutex<BTreeSet<String>>>,
}

impl Proxy {
    /// Starts one before the broker of this URL.
    pub async fn start(broker: &str, allowed: Allowed) -> std::io::Result<Self> {
        let endpoint: queue_core::Endpoint = broker.parse().expect("the broker's URL");
        let upstream = endpoint.hosts[0].with_default_port(80);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let refused = Arc::new(Mutex::new(BTreeSet::new()));
        let options = broker.split_once('?').map_or("", |(_, options)| options);
        let proxy = Self { url: format!("sqs://{}?{options}", listener.local_addr()?), refused: refused.clone() };
        let allowed = Arc::new(allowed);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, upstream.clone(), allowed.clone(), refused.clone()));
            }
        });
        Ok(proxy)
    }

    /// As that of the broker, with the proxy as its host.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The actions that were refused.
    pub fn refused(&self) -> BTreeSet<String> {
        self.refused.lock().expect("nobody panicked").clone()
    }
}

async fn serve(
    mut socket: TcpStream,
    upstream: String,
    allowed: Arc<Allowed>,
    refused: Arc<Mutex<BTreeSet<String>>>,
) -> std::io::Result<()> {
    let mut upstream = TcpStream::connect(upstream).await?;
    loop {
        let Some((request, head, body)) = whole(&mut socket).await? else { return Ok(()) };
        let (on, needs) = match field(&head, "x-amz-target:") {
            Some(target) => of_sqs(&target, &body),
            None => of_sns(&body),
        };
        let may = |action: &str| allowed.get(&on).is_some_and(|actions| actions.contains(action));
        // Nobody needs a right to be told who he is.
        if let Some(action) = needs.into_iter().find(|action| action != "GetCallerIdentity" && !may(action)) {
            let answer = refusal(&head);
            refused.lock().expect("nobody panicked").insert(action);
            socket.write_all(answer.as_bytes()).await?;
            continue;
        }
        upstream.write_all(&request).await?;
        let Some((answer, ..)) = whole(&mut upstream).await? else { return Ok(()) };
        socket.write_all(&answer).await?;
    }
}

/// The queue of a request, and the actions that it needs.
fn of_sqs(target: &str, body: &str) -> (String, Vec<String>) {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let queue = body["QueueName"].as_str().or_else(|| body["QueueUrl"].as_str()).unwrap_or_default();
    let mut needs = vec![target.trim_start_matches("AmazonSQS.").trim_end_matches("Batch").to_owned()];
    if body.get("tags").is_some() {
        needs.push("TagQueue".to_owned());
    }
    (queue.rsplit('/').next().unwrap_or_default().to_owned(), needs)
}

/// The topic of a request, and the action that it needs.
fn of_sns(body: &str) -> (String, Vec<String>) {
    let form: BTreeMap<String, String> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let arn = form.get("TopicArn").and_then(|arn| arn.split(':').nth(5));
    // IAM has no name for a subscription.
    let subscription = form.get("SubscriptionArn").map(|_| "*");
    let topic = arn.or(subscription).or_else(|| form.get("Name").map(String::as_str));
    let action = form.get("Action").map(|action| action.trim_end_matches("Batch").to_owned());
    (topic.unwrap_or_default().to_owned(), action.into_iter().collect())
}

fn refusal(head: &str) -> String {
    const MESSAGE: &str = "User is not authorized";
    let (head, body) = match field(head, "x-amz-target:") {
        Some(_) => (
            "400 X\r\ncontent-type: application/x-amz-json-1.0\r\nx-amzn-query-error: AccessDenied;Sender",
            format!(r#"{{"__type":"com.amazon.coral.service#AccessDeniedException","message":"{MESSAGE}"}}"#),
        ),
        None => (
            "403 X\r\ncontent-type: text/xml",
            format!(
                "<ErrorResponse><Error><Type>Sender</Type><Code>AuthorizationError</Code><Message>{MESSAGE}</Message></Error></ErrorResponse>"
            ),
        ),
    };
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
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
