//! What the proxy passes on, and what it answers itself.

use std::process::Stdio;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::http::get;
use crate::process::Running;
use crate::shop::program;
use crate::{Outcome, block_on};

/// More than an answer takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn passes(_: &str) -> Outcome {
    block_on(async {
        let behind = TcpListener::bind("127.0.0.1:0").await?;
        let silent = TcpListener::bind("127.0.0.1:0").await?;
        // Nobody listens there.
        let away = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let mut proxy = program(
            &["proxy"],
            &[
                ("ORDERS", &format!("http://{}", behind.local_addr()?)),
                ("PAYMENTS", &format!("http://{}", silent.local_addr()?)),
                ("NOTIFICATIONS", &format!("http://{away}")),
                ("TIMEOUT", "1"),
            ],
        );
        // It says who was away, as it should.
        proxy.stderr(Stdio::null());
        let proxy = Running::start(proxy)?;
        let at = proxy.line()?;
        streams(at.trim_start_matches("http://"), &behind).await?;
        too_long(at.trim_start_matches("http://"), &behind).await?;
        let (status, body) = get(format!("{at}/notifications?limit=1")).await?;
        assert_eq!((status, &*body), (StatusCode::BAD_GATEWAY, r#"{"error":"the service notifications is away"}"#));
        let (status, body) = get(format!("{at}/payments/1")).await?;
        let late = r#"{"error":"the service payments did not answer in time"}"#;
        assert_eq!((status, &*body), (StatusCode::GATEWAY_TIMEOUT, late));
        ends(proxy, at.trim_start_matches("http://"), &behind).await
    })
}

/// Both bodies pass while they come; what is between neighbours stays there.
async fn streams(at: &str, behind: &TcpListener) -> Outcome {
    let mut client = TcpStream::connect(at).await?;
    let request = "POST /orders/7?a=%20b HTTP/1.1\r\nHost: shop\r\nX-Forwarded-For: 10.0.0.1\r\nX-Own: kept\r\n\
        Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nTE: trailers\r\nUpgrade: other\r\n\
        Proxy-Authorization: secret\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
    client.write_all(request.as_bytes()).await?;
    let (mut service, _) = timeout(PATIENCE, behind.accept()).await??;
    let head = read_until(&mut service, "first").await?.to_ascii_lowercase();
    assert!(head.starts_with("post /orders/7?a=%20b http/1.1\r\n"), "{head}");
    assert!(head.contains("x-forwarded-for: 10.0.0.1, 127.0.0.1\r\n") && head.contains("x-own: kept\r\n"), "{head}");
    assert!(head.contains(&format!("host: {}\r\n", behind.local_addr()?)), "{head}");
    for hop in ["x-hop", "keep-alive", "te:", "upgrade", "proxy-authorization", "secret"] {
        assert!(!head.contains(&format!("\n{hop}")), "{hop}: {head}");
    }
    client.write_all(b"6\r\nsecond\r\n0\r\n\r\n").await?;
    read_until(&mut service, "second").await?;
    service
        .write_all(
            b"HTTP/1.1 202 Accepted\r\nX-Own: kept\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
            Transfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n",
        )
        .await?;
    let head = read_until(&mut client, "early").await?.to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 202 accepted\r\n") && head.contains("x-own: kept\r\n"), "{head}");
    assert!(!head.contains("x-hop") && !head.contains("keep-alive"), "{head}");
    service.write_all(b"4\r\nlate\r\n0\r\n\r\n").await?;
    read_until(&mut client, "late").await?;
    Ok(())
}

/// Whether its length is said or not.
async fn too_long(at: &str, behind: &TcpListener) -> Outcome {
    let mut client = TcpStream::connect(at).await?;
    client.write_all(b"POST /orders HTTP/1.1\r\nHost: shop\r\nContent-Length: 16385\r\n\r\n").await?;
    let answer = read_until(&mut client, "}").await?;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains(r#"{"error":"length limit exceeded"#), "{answer}");
    let mut client = TcpStream::connect(at).await?;
    client.write_all(b"POST /orders HTTP/1.1\r\nHost: shop\r\nTransfer-Encoding: chunked\r\n\r\n").await?;
    let (mut service, _) = timeout(PATIENCE, behind.accept()).await??;
    read_until(&mut service, "\r\n\r\n").await?;
    client.write_all(format!("4001\r\n{}\r\n", " ".repeat(0x4001)).as_bytes()).await?;
    let answer = read_until(&mut client, "}").await?;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains(r#"{"error":"length limit exceeded"#), "{answer}");
    Ok(())
}

/// A request that is under way when the proxy is to end gets its answer.
async fn ends(proxy: Running, at: &str, behind: &TcpListener) -> Outcome {
    let mut client = TcpStream::connect(at).await?;
    client.write_all(b"GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n").await?;
    let (mut service, _) = timeout(PATIENCE, behind.accept()).await??;
    read_until(&mut service, "\r\n\r\n").await?;
    let ended = tokio::task::spawn_blocking(|| proxy.interrupt());
    // It takes no more when it has been told.
    while TcpStream::connect(at).await.is_ok() {
        tokio::task::yield_now().await;
    }
    service.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await?;
    read_until(&mut client, "done").await?;
    drop((service, client));
    ended.await?
}

/// What comes, up to this.
async fn read_until(from: &mut TcpStream, text: &str) -> Outcome<String> {
    let mut read = Vec::new();
    let all = async {
        while !String::from_utf8_lossy(&read).contains(text) {
            if from.read_buf(&mut read).await? == 0 {
                return Err(format!("it ended: {}", String::from_utf8_lossy(&read)).into());
            }
        }
        Outcome::Ok(())
    };
    timeout(PATIENCE, all).await??;
    Ok(String::from_utf8(read)?)
}
