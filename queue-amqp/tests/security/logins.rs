//! Users, passwords, virtual hosts.

use std::sync::atomic::Ordering;
use std::time::Duration;

use queue_amqp::DRIVER;
use queue_core::{Client, ErrorKind};
use tokio::time::{Instant, sleep};

use crate::common::{connect, until};
use crate::proxy::Proxy;
use crate::server::{PLAIN_PORT, server, store, tool};

pub(crate) async fn refusals_are_told_apart_and_show_no_password() {
    server();
    for (login, vhost, kind) in [
        ("guest:hunter2", "", ErrorKind::Unauthorized),
        ("hunter2:hunter2", "", ErrorKind::Unauthorized),
        ("guest:guest", "/nowhere", ErrorKind::NotFound),
        ("guest:guest", "/closed", ErrorKind::Unauthorized),
    ] {
        let start = Instant::now();
        let error = connect(&format!("amqp://{login}@localhost:{PLAIN_PORT}{vhost}")).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{login} {vhost}: {error:?}");
        assert!(!error.is_retryable());
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        if !login.starts_with("hunter2") {
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
            assert_eq!(error.context("user"), Some("guest"));
        }
    }
}

pub(crate) async fn a_changed_password_is_read_at_the_reconnect_and_a_refused_one_is_not_hammered() {
    server();
    tool(&["change_password", "rotating", "hunter1"]);
    let path = store("password", "hunter1\n");
    let proxy = Proxy::to(PLAIN_PORT).await;
    let url = format!("amqp://rotating@localhost:{}?password_file={path}&max_backoff=2s", proxy.port);
    let broker = connect(&url).await.unwrap();
    assert_eq!(proxy.accepted.load(Ordering::SeqCst), 2);
    tool(&["change_password", "rotating", "hunter2"]);
    proxy.cut();
    until("the login is refused", async || {
        broker.health().problems.iter().filter(|p| p.contains("REFUSED")).count() == 2
    })
    .await;
    let shown = format!("{:?} {broker:?}", broker.health());
    assert!(!shown.contains("hunter"), "{shown}");
    // Each of two connections waits one to two seconds between attempts.
    let before = proxy.accepted.load(Ordering::SeqCst);
    sleep(Duration::from_secs(4)).await;
    let attempts = proxy.accepted.load(Ordering::SeqCst) - before;
    assert!((1..=9).contains(&attempts), "{attempts}");
    store("password", "hunter2");
    until("it logs in again", async || broker.health().is_up()).await;
    broker.ping().await.unwrap();
}

pub(crate) async fn options_that_do_not_fit_together_are_refused() {
    let forever = "amqp://h?connect_timeout=18446744073709551615s";
    let error = Client::connect_with(forever, &[DRIVER]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
    for (url, says) in [
        ("amqp://u:hunter2@h?password_file=/x", "one password"),
        ("amqp://u:hunter2@h?token_file=/x&auth=oauth2", "one password"),
        ("amqp://u@h?token_file=/x", "auth=oauth2"),
        ("amqp://u@h?auth=oauth2", "token_file"),
        ("amqps://h?password_file=/x&auth=external", "auth=plain"),
        ("amqps://h?auth=external", "client_cert_file"),
        ("amqp://h?auth=external", "client_cert_file"),
        ("amqps://u@h?auth=external&client_cert_file=/x&client_key_file=/y", "no user"),
        ("amqps://h?client_cert_file=/x", "go together"),
        ("amqps://h?client_key_file=/x", "go together"),
        ("amqp://h?ca_file=/x", "amqps"),
        ("amqp://h?server_name=x", "amqps"),
        ("amqps://h?server_name=not%20a%20name", "server_name"),
        ("amqp://h?auth=kerberos", "auth"),
        ("amqp://h?heartbeat=0s", "heartbeat"),
        ("amqp://h?operation_timeout=18446744073709551615s", "at most a day"),
        ("amqp://h?max_backoff=18446744073709551615s", "at most a day"),
        ("amqps://127.0.0.1:1?ca_file=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("amqp://u@127.0.0.1:1?password_file=/nowhere/password", "/nowhere/password"),
    ] {
        let url = url.replace("127.0.0.1:1", &format!("127.0.0.1:{PLAIN_PORT}"));
        if url.contains("/nowhere") {
            server();
        }
        let error = connect(&url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}: {error:?}");
        assert!(error.to_string().contains(says), "{url}: {error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}
