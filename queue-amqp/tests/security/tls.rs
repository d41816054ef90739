//! Certificates, of the server and of the client.

use std::time::Duration;

use queue_core::{Error, ErrorKind, HealthState};
use tokio::time::Instant;

use crate::common::{connect, producer, queue, send_all, until};
use crate::proxy::Proxy;
use crate::server::{PLAIN_PORT, TLS_PORT, authority, file, issue, server, store};

fn url(options: &str) -> String {
    format!("amqps://guest:guest@localhost:{TLS_PORT}?{options}")
}

async fn refused(url: &str) -> Error {
    let start = Instant::now();
    let error = connect(url).await.expect_err(url);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    error
}

pub(crate) async fn a_server_is_trusted_by_its_authority_and_its_name_only() {
    server();
    let ca = file("server-ca.pem");
    let broker = connect(&url(&format!("ca_file={ca}"))).await.unwrap();
    let address = queue(&broker, "tls").await;
    let sender = producer(&broker, &address).await;
    send_all(&sender, vec!["over TLS".into(), vec![7; 1 << 20].into()]).await;
    broker.delete(&address).await.unwrap();

    connect(&url(&format!("ca_file={ca}&server_name=broker.test"))).await.unwrap();
    let error = refused(&url(&format!("ca_file={ca}&server_name=other.test"))).await;
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(!error.is_retryable());
    assert!(error.to_string().contains("not trusted") && error.to_string().contains("not valid for name"), "{error}");
    // By its address: the certificate has none.
    let error = refused(&format!("amqps://guest:guest@127.0.0.1:{TLS_PORT}?ca_file={ca}")).await;
    assert!(error.to_string().contains("not trusted"), "{error}");

    let other = store("other-ca.pem", &authority().pem());
    let error = refused(&url(&format!("ca_file={other}"))).await;
    assert!(error.to_string().contains("not trusted"), "{error}");
    // The system knows nothing of the tests' authority.
    let error = refused(&url("")).await;
    assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
    assert!(error.to_string().contains("not trusted"), "{error}");
    let error = refused(&url(&format!("ca_file={}", store("no-ca.pem", "nothing")))).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
}

pub(crate) async fn the_wrong_scheme_for_a_port_is_told() {
    server();
    let error = refused(&format!("amqp://guest:guest@localhost:{TLS_PORT}")).await;
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.to_string().contains("amqps"), "{error}");
    let error = refused(&format!("amqps://guest:guest@localhost:{PLAIN_PORT}?ca_file={}", file("server-ca.pem"))).await;
    assert_eq!(error.kind(), ErrorKind::Connection);
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
}

fn external(name: &str) -> String {
    format!(
        "amqps://localhost:{TLS_PORT}?auth=external&ca_file={}&client_cert_file={}&client_key_file={}",
        file("server-ca.pem"),
        file(&format!("{name}-cert.pem")),
        file(&format!("{name}-key.pem"))
    )
}

pub(crate) async fn a_client_certificate_logs_in() {
    let server = server();
    let broker = connect(&external("client")).await.unwrap();
    broker.ping().await.unwrap();
    // A certificate for which there is no user.
    let error = refused(&external("nobody")).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    // One that the server's authorities do not vouch for.
    issue(&authority(), "foreign", "client", "client.test");
    let error = refused(&external("foreign")).await;
    // The server closes at once; whether its reason is read before that is a matter of luck.
    assert!(matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::Connection), "{error:?}");
    assert!(error.to_string().contains("client certificate"), "{error}");
    // A key that belongs to another one.
    issue(&server.authority, "mixed", "client", "client.test");
    store("mixed-key.pem", &std::fs::read_to_string(file("nobody-key.pem")).unwrap());
    let error = refused(&external("mixed")).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
    assert!(!format!("{error:?}").contains("PRIVATE KEY"));
}

pub(crate) async fn certificates_are_read_again_at_the_reconnect() {
    let server = server();
    let ca = store("changing-ca.pem", &server.authority.pem());
    let proxy = Proxy::to(TLS_PORT).await;
    let url = format!("amqps://guest:guest@localhost:{}?ca_file={ca}&max_backoff=500ms", proxy.port);
    let broker = connect(&url).await.unwrap();
    store("changing-ca.pem", &authority().pem());
    proxy.cut();
    until("the server is not trusted", async || {
        let health = broker.health();
        health.state == HealthState::Down && health.problems.iter().any(|p| p.contains("not trusted"))
    })
    .await;
    store("changing-ca.pem", &server.authority.pem());
    until("it is trusted again", async || broker.health().is_up()).await;
    broker.ping().await.unwrap();
}
