//! Servers and networks that do not answer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use queue_amqp::DRIVER;
use queue_core::{Endpoint, ErrorKind, EventKind, Events, HealthState};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

use crate::common::{soon, until};
use crate::proxy::Proxy;
use crate::server::{PLAIN_PORT, server};

/// Some way over a connect timeout of one second, on a busy machine.
const ABOUT_ONE: Duration = Duration::from_secs(4);

fn endpoint(url: &str) -> Endpoint {
    let mut endpoint: Endpoint = url.parse().unwrap();
    endpoint.connect_timeout = Duration::from_secs(1);
    endpoint
}

/// Accepts and says nothing; hands out how long each connection was held.
async fn silent() -> (u16, tokio::sync::mpsc::Receiver<Duration>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (left, leaving) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let left = left.clone();
            tokio::spawn(async move {
                let start = Instant::now();
                let mut buffer = [0; 1024];
                while let Ok(1..) = stream.read(&mut buffer).await {}
                let _ = left.send(start.elapsed()).await;
            });
        }
    });
    (port, leaving)
}

pub(crate) async fn a_server_that_says_nothing_is_an_error_in_time_and_is_left() {
    let (port, mut leaving) = silent().await;
    for scheme in ["amqp", "amqps"] {
        let start = Instant::now();
        let error = (DRIVER.connect)(endpoint(&format!("{scheme}://u:hunter2@localhost:{port}")), Events::new())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection, "{scheme}: {error:?}");
        assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < ABOUT_ONE, "{:?}", start.elapsed());
        assert_eq!(error.context("host"), Some(&*format!("localhost:{port}")));
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        // Nothing of ours goes on waiting.
        let held = timeout(ABOUT_ONE, leaving.recv()).await.expect("hung up").unwrap();
        assert!(held < ABOUT_ONE, "{held:?}");
    }
}

pub(crate) async fn a_server_that_closes_at_once_is_an_error_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    for scheme in ["amqp", "amqps"] {
        let mut endpoint = endpoint(&format!("{scheme}://localhost:{port}"));
        endpoint.connect_timeout = Duration::from_secs(20);
        let start = Instant::now();
        let error = (DRIVER.connect)(endpoint, Events::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection, "{scheme}: {error:?}");
        assert!(start.elapsed() < ABOUT_ONE, "{:?}", start.elapsed());
    }
}

pub(crate) async fn a_host_that_says_nothing_leaves_time_for_the_next() {
    server();
    let (port, _leaving) = silent().await;
    let mut endpoint = endpoint(&format!("amqp://guest:guest@localhost:{port},[::1]:1,localhost:{PLAIN_PORT}"));
    endpoint.connect_timeout = Duration::from_secs(12);
    let broker = (DRIVER.connect)(endpoint, Events::new()).await.unwrap();
    broker.ping().await.unwrap();
    assert!(broker.health().is_up());
}

pub(crate) async fn a_swallowed_network_is_noticed_and_told_once() {
    server();
    let proxy = Proxy::to(PLAIN_PORT).await;
    let events = Events::new();
    let mut heard = events.listen();
    let url =
        format!("amqp://guest:guest@localhost:{}?heartbeat=1s&operation_timeout=5s&max_backoff=500ms", proxy.port);
    let broker = (DRIVER.connect)(endpoint(&url), events).await.unwrap();
    proxy.swallow.store(true, Ordering::SeqCst);
    let start = Instant::now();
    until("health is red", async || broker.health().state == HealthState::Down).await;
    // Two heartbeats of a second.
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    until("both are lost", async || broker.health().problems.len() == 2).await;
    let problems = broker.health().problems;
    for role in ["publish", "consume"] {
        let said = problems.iter().find(|p| p.starts_with(role)).unwrap();
        assert!(said.contains(&format!("localhost:{}", proxy.port)), "{said}");
    }
    // Some attempts fail meanwhile, and are no news.
    let before = proxy.accepted.load(Ordering::SeqCst);
    until("it tries again", async || proxy.accepted.load(Ordering::SeqCst) >= before + 3).await;
    proxy.swallow.store(false, Ordering::SeqCst);
    until("health is green", async || broker.health().is_up()).await;
    broker.ping().await.unwrap();
    let mut told = Vec::new();
    while told.len() < 6 {
        told.push(soon(heard.next()).await.unwrap().kind);
    }
    let (up, down) = (EventKind::Connected, EventKind::Disconnected);
    assert_eq!(told, [up, up, down, down, up, up]);
    // Longer than two heartbeats: it stays.
    assert!(timeout(Duration::from_secs(3), heard.next()).await.is_err());
}

pub(crate) async fn a_server_that_is_silent_at_the_end_is_left_too() {
    server();
    let proxy = Proxy::to(PLAIN_PORT).await;
    // So long that no heartbeat ends it.
    let url = format!("amqp://guest:guest@localhost:{}?heartbeat=60s&operation_timeout=2s", proxy.port);
    for close in [true, false] {
        let broker = (DRIVER.connect)(endpoint(&url), Events::new()).await.unwrap();
        broker.ping().await.unwrap();
        assert_eq!(proxy.held.load(Ordering::SeqCst), 2);
        proxy.swallow.store(true, Ordering::SeqCst);
        let start = Instant::now();
        if close {
            let report = broker.close(Instant::now() + Duration::from_secs(1)).await;
            assert!(!report.is_clean());
        } else {
            drop(broker);
        }
        until("the connections are gone", async || proxy.held.load(Ordering::SeqCst) == 0).await;
        assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
        proxy.swallow.store(false, Ordering::SeqCst);
    }
}
