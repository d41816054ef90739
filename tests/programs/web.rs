//! The web service, over HTTP.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::http::{get, head, listen, post};
use crate::process::{Running, example, failed};
use crate::{Outcome, block_on};

const PATIENCE: Duration = Duration::from_secs(240);

/// Requests at a time, by size of the test.
fn at_a_time() -> usize {
    if std::env::var("FULL").is_ok_and(|full| full == "1") { 10_000 } else { 200 }
}

pub(crate) fn on_memory(_: &[String]) -> Outcome {
    works(&["memory://".to_owned()])
}

/// The service with a queue of its own, while something asks it: where it listens, and its process.
pub(crate) fn served<F: Future<Output = Outcome>>(url: &str, ask: impl FnOnce(String, u32) -> F) -> Outcome {
    let queue = format!("web-{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros());
    let mut command = example("web", url, &[])?;
    command.env("LISTEN", "127.0.0.1:0").env("QUEUE", &queue);
    let service = Running::start(command)?;
    let at = service.line()?;
    block_on(ask(at, service.child.id()))?;
    service.interrupt()?;
    if url == "memory://" {
        return Ok(());
    }
    block_on(async {
        let client = anyqueue::connect(url).await?;
        for name in [queue.clone(), format!("{queue}-dlq")] {
            client.delete(&*name).await?;
        }
        client.close(Duration::from_secs(5)).await;
        Ok(())
    })
}

pub(crate) fn works(urls: &[String]) -> Outcome {
    let url = &*urls[0];
    served(url, |at, process| async move {
        let (status, page) = get(format!("{at}/")).await?;
        assert!(status == StatusCode::OK && page.contains("<title>A queue</title>"), "{page}");
        assert_eq!(get(format!("{at}/consume")).await?, (StatusCode::NO_CONTENT, String::new()));
        bodies(&at, url.starts_with("sqs")).await?;
        bad(&at).await?;
        many(&at, url, process).await?;
        for probe in ["live", "ready"] {
            assert_eq!(get(format!("{at}/health/{probe}")).await?.0, StatusCode::OK, "{probe}");
        }
        let (_, metrics) = get(format!("{at}/metrics")).await?;
        assert!(metrics.contains("messaging_client_sent_messages_total{"), "{metrics}");
        depth(&at).await
    })
}

/// What waits is counted, also while this service has fetched some of it before; and the page is still there when the service ends.
async fn depth(at: &str) -> Outcome {
    for n in 0..3 {
        post(format!("{at}/produce"), "text/plain", n.to_string()).await?;
    }
    let told = |text: &'static str| timeout(PATIENCE, listen(format!("{at}/depth"), text));
    told("data: 3\n").await??;
    for left in ["data: 2\n", "data: 1\n", "data: 0\n"] {
        consumed(at).await?;
        told(left).await??;
    }
    // Nothing answers that.
    let page = listen(format!("{at}/depth"), "never told");
    assert!(timeout(Duration::from_millis(100), page).await.is_err());
    Ok(())
}

/// Takes a message; waits until there is one.
async fn consumed(at: &str) -> Outcome<Value> {
    let take = async {
        loop {
            let (status, body) = get(format!("{at}/consume")).await?;
            if status != StatusCode::NO_CONTENT {
                assert_eq!(status, StatusCode::OK, "{body}");
                return Outcome::Ok(serde_json::from_str(&body)?);
            }
        }
    };
    timeout(PATIENCE, take).await?
}

async fn bodies(at: &str, counts_releases: bool) -> Outcome {
    for (content_type, body, expected, kept) in [
        (
            "application/x-www-form-urlencoded",
            "message=gr%C3%BC%C3%9Fe+all",
            "grüße all",
            json!("text/plain; charset=utf-8"),
        ),
        ("application/json; charset=utf-8", r#"{"message": "as JSON"}"#, "as JSON", json!("text/plain; charset=utf-8")),
        ("text/csv", "a,b", "a,b", json!("text/csv")),
        ("Image/PNG", "raw", "raw", json!("Image/PNG")),
        ("", "raw", "raw", Value::Null),
    ] {
        let (status, said) = post(format!("{at}/produce"), content_type, body).await?;
        assert_eq!(status, StatusCode::CREATED, "{said}");
        let taken = consumed(at).await?;
        assert_eq!((&taken["message"], &taken["content_type"]), (&json!(expected), &kept), "{taken}");
        assert_eq!(taken["bytes"], expected.len(), "{taken}");
        // SQS counts what a poll that nobody waits for any more receives.
        assert!(taken["attempt"] == 1 || (counts_releases && taken["attempt"].as_u64() > Some(1)), "{taken}");
    }
    post(format!("{at}/produce"), "", vec![0xff, 0, 1]).await?;
    let taken = consumed(at).await?;
    assert_eq!((&taken["message"], &taken["base64"]), (&Value::Null, &json!("/wAB")), "{taken}");
    Ok(())
}

async fn bad(at: &str) -> Outcome {
    let produce = format!("{at}/produce");
    for (content_type, body) in [
        ("application/json", "{"),
        ("application/json", r#"{"text": 1}"#),
        ("application/x-www-form-urlencoded", "text=1"),
    ] {
        let (status, said) = post(produce.clone(), content_type, body).await?;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
        assert!(said.contains("expected "), "{said}");
    }
    let (status, _) = post(produce.clone(), "", vec![b'x'; 256 * 1024 + 1]).await?;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(get(produce).await?.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(head(format!("{at}/consume")).await?.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(get(format!("{at}/nothing")).await?.0, StatusCode::NOT_FOUND);
    Ok(())
}

/// Many at a time: each message is produced and taken once.
async fn many(at: &str, url: &str, process: u32) -> Outcome {
    let produced = join_all((0..at_a_time()).map(|n| post(format!("{at}/produce"), "text/plain", n.to_string()))).await;
    for answer in produced {
        assert_eq!(answer?.0, StatusCode::CREATED);
    }
    few_connections(url, process)?;
    let mut taken = BTreeSet::new();
    let all = async {
        while taken.len() < at_a_time() {
            // As many as there are messages left: most of the first find none in time.
            let left = at_a_time() - taken.len();
            let answers = join_all((0..left).map(|_| get(format!("{at}/consume")))).await;
            for answer in answers {
                let (status, body) = answer?;
                if status == StatusCode::OK {
                    let message: Value = serde_json::from_str(&body)?;
                    let number = message["message"].as_str().ok_or("no text")?.parse::<usize>()?;
                    assert!(taken.insert(number), "{number} was taken twice");
                }
            }
        }
        Outcome::Ok(())
    };
    timeout(2 * PATIENCE, all).await??;
    assert_eq!(taken, (0..at_a_time()).collect());
    few_connections(url, process)
}

/// However many ask, they share a few connections. To RabbitMQ: one to send and one to receive, so that a broker which blocks senders
/// takes answers. To Kafka: those of its clients that send, receive, and look after topics and groups, some of them for a moment. To
/// SQS: one for each request that is under way.
fn few_connections(url: &str, process: u32) -> Outcome {
    let open = connections(url, process)?;
    let expected = match url.split_once(':') {
        Some(("amqp", _)) => 2..=2,
        Some(("kafka" | "sqs", _)) => 1..=64,
        _ => 0..=0,
    };
    if expected.contains(&open) { Ok(()) } else { Err(format!("{open} connections, not {expected:?}").into()) }
}

/// How many connections a process has to the port of this URL.
fn connections(url: &str, process: u32) -> Outcome<usize> {
    let address =
        url.split(['/', '?', '@']).find_map(|part| part.rsplit_once(':').and_then(|(_, port)| port.parse().ok()));
    let Some(port) = address.map(|port: u16| format!(":{port:04X}")) else { return Ok(0) };
    let of_process: BTreeSet<_> = std::fs::read_dir(format!("/proc/{process}/fd"))?
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()?.into_os_string().into_string().ok())
        .collect();
    let mut open = 0;
    for table in ["tcp", "tcp6"] {
        for line in std::fs::read_to_string(format!("/proc/{process}/net/{table}"))?.lines().skip(1) {
            let columns: Vec<_> = line.split_whitespace().collect();
            let [_, _, remote, "01", ..] = columns[..] else { continue };
            let socket = columns.get(9).map(|inode| format!("socket:[{inode}]")).unwrap_or_default();
            open += usize::from(remote.ends_with(&port) && of_process.contains(&socket));
        }
    }
    Ok(open)
}

pub(crate) fn wrong(_: &[String]) -> Outcome {
    for (url, listen, why) in [
        ("orders", "127.0.0.1:0", "a URL reads scheme://host:port"),
        ("amqp://127.0.0.1:1", "127.0.0.1:0", "Connection refused"),
        ("memory://", "nowhere", "LISTEN 'nowhere': "),
    ] {
        let mut command = example("web", url, &[])?;
        command.env("LISTEN", listen);
        let (printed, said) = failed(command)?;
        assert!(printed.is_empty() && said.contains(why) && said.lines().count() == 1, "{said}");
    }
    Ok(())
}
