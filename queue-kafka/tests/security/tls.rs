//! Certificates, of the broker and of the client.

use std::time::Duration;

use queue_core::{Error, ErrorKind, Events};
use queue_kafka::DRIVER;
use tokio::time::Instant;

use crate::common::*;
use crate::proxy::silent;
use crate::server::*;
use crate::tells;

fn url(options: &str) -> String {
    format!("kafkas://localhost:{TLS_PORT}?{options}")
}

async fn refused(url: &str) -> Error {
    let start = Instant::now();
    let error = connect_to(url).await.expect_err(url);
    println!("{error} after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert!(!tells(&format!("{error:?}")), "{error:?}");
    error
}

pub(crate) async fn a_broker_is_trusted_by_its_authority_and_its_name_only() {
    server();
    let ca = file("server-ca.pem");
    let rig = Rig::at(&url(&format!("ca_file={ca}")), 2).await;
    rig.send(vec!["over TLS".into(), vec![7; 1 << 19].into()]).await;
    let consumer = rig.consumer().await;
    assert_eq!(receive(&*consumer, 2).await.len(), 2);
    rig.broker.delete(&rig.queue).await.unwrap();
    rig.end().await;

    // By its address: the certificate has none.
    let not_by_name = format!("kafkas://127.0.0.1:{TLS_PORT}?ca_file={ca}");
    let other = store("other-ca.pem", &authority().pem());
    // Without a file: the system knows nothing of the tests' authority.
    for url in [not_by_name, url(&format!("ca_file={other}")), url("")] {
        let error = refused(&url).await;
        assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
        assert!(!error.is_retryable());
        assert!(error.to_string().contains("not trusted"), "{error}");
    }
    let error = refused(&url(&format!("ca_file={}", store("no-ca.pem", "nothing")))).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
    assert!(error.to_string().contains("no-ca.pem"), "{error}");
}

pub(crate) async fn the_wrong_scheme_for_a_port_is_told() {
    server();
    let connect = async |url: String| {
        let mut endpoint: queue_core::Endpoint = url.parse().unwrap();
        endpoint.connect_timeout = Duration::from_secs(3);
        (DRIVER.connect)(endpoint, Events::new()).await.unwrap_err()
    };
    let error = connect(format!("kafka://localhost:{TLS_PORT}")).await;
    assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
    assert!(error.to_string().contains("kafkas"), "{error}");
    let error = connect(format!("kafkas://localhost:{OPEN_PORT}?ca_file={}", file("server-ca.pem"))).await;
    assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
    assert!(error.to_string().contains("PLAINTEXT"), "{error}");
}

fn with_certificate(name: &str, options: &str) -> String {
    format!(
        "kafkas://localhost:{MUTUAL_PORT}?ca_file={}&client_cert_file={}&client_key_file={}{options}",
        file("server-ca.pem"),
        file(&format!("{name}-cert.pem")),
        file(&format!("{name}-key.pem"))
    )
}

pub(crate) async fn a_client_certificate_logs_in() {
    let server = server();
    for options in ["", "&auth=external"] {
        let rig = Rig::at(&with_certificate("client", options), 1).await;
        rig.send(numbered(0..3)).await;
        let consumer = rig.consumer().await;
        assert_eq!(receive(&*consumer, 3).await.len(), 3);
        rig.broker.delete(&rig.queue).await.unwrap();
        rig.end().await;
    }
    // None at all.
    let error = refused(&format!("kafkas://localhost:{MUTUAL_PORT}?ca_file={}", file("server-ca.pem"))).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(error.to_string().contains("client certificate"), "{error}");
    // One that the broker's authorities do not vouch for.
    issue(&authority(), "foreign", "client.test");
    let error = refused(&with_certificate("foreign", "")).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(error.to_string().contains("client certificate"), "{error}");
    // A key that belongs to another one.
    issue(&server.authority, "mixed", "client.test");
    store("mixed-key.pem", &std::fs::read_to_string(file("client-key.pem")).unwrap());
    let error = refused(&with_certificate("mixed", "")).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
    // No key.
    store("mixed-key.pem", "hunter2-wrong");
    let error = refused(&with_certificate("mixed", "")).await;
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error:?}");
    assert!(error.to_string().contains("mixed-key.pem"), "{error}");
}

pub(crate) async fn a_broker_that_says_nothing_is_an_error_in_time() {
    let port = silent().await;
    for url in [format!("kafkas://localhost:{port}"), format!("kafka://alice:{PASSWORD}@localhost:{port}")] {
        let mut endpoint: queue_core::Endpoint = url.parse().unwrap();
        endpoint.connect_timeout = Duration::from_secs(1);
        let start = Instant::now();
        let error = (DRIVER.connect)(endpoint, Events::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
        assert!(error.is_retryable());
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        assert!(!tells(&format!("{error} {error:?}")), "{error:?}");
    }
}
