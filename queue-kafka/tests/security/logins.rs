//! Users and passwords.

use std::time::Duration;

use queue_core::ErrorKind;
use queue_kafka::DRIVER;
use tokio::time::{Instant, sleep};

use crate::common::*;
use crate::proxy::Proxy;
use crate::server::*;
use crate::tells;

/// A login is refused in a round trip; a connect that waits for its timeout takes ten times as long.
const AT_ONCE: Duration = Duration::from_secs(4);

pub(crate) async fn a_password_logs_in_by_every_mechanism() {
    server();
    let path = store("password", &format!("{PASSWORD}\n"));
    let ca = file("server-ca.pem");
    for auth in ["plain", "scram-sha-256", "scram-sha-512"] {
        for url in [
            format!("kafka://alice:{PASSWORD}@localhost:{LOGIN_PORT}?auth={auth}"),
            format!("kafkas://alice@localhost:{LOGIN_TLS_PORT}?auth={auth}&ca_file={ca}&password_file={path}"),
        ] {
            // All kinds of clients: for changes, for sending, for receiving, for questions.
            let rig = Rig::at(&url, 2).await;
            rig.send(numbered(0..10)).await;
            let consumer = rig.consumer().await;
            let tokens: Vec<_> = receive(&*consumer, 10).await.iter().map(|r| r.token).collect();
            consumer.ack(&tokens);
            consumer.flush().await.unwrap();
            let source = queue_core::Source::new(rig.queue.clone());
            assert_eq!(rig.broker.stats(&source).await.unwrap().lag, Some(0), "{auth}");
            rig.broker.delete(&rig.queue).await.unwrap();
            assert!(!tells(&format!("{:?} {:?}", rig.broker, rig.broker.health())));
            rig.end().await;
        }
    }
}

pub(crate) async fn a_login_that_is_refused_is_told_at_once_and_not_hammered() {
    server();
    let proxy = Proxy::between(PROXY_PORT, HIDDEN_PORT).await;
    for (auth, user, password) in [
        ("plain", "alice", WRONG_PASSWORD),
        ("scram-sha-256", "alice", WRONG_PASSWORD),
        ("scram-sha-512", "nobody", PASSWORD),
        // A mechanism that the listener has not.
        ("oauth2", "alice", "a-token"),
    ] {
        let (start, before) = (Instant::now(), proxy.accepted());
        let url = format!("kafka://{user}:{password}@localhost:{PROXY_PORT}?auth={auth}");
        let error = connect_to(&url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{auth}: {error:?}");
        assert!(!error.is_retryable());
        assert_eq!(error.context("user"), Some(user));
        assert!(!tells(&format!("{error} {error:?}")), "{error:?}");
        assert!(start.elapsed() < AT_ONCE, "{auth}: {:?}", start.elapsed());
        sleep(Duration::from_secs(3)).await;
        let attempts = proxy.accepted() - before;
        println!("{auth}: {error} after {:?}, {attempts} attempts", start.elapsed());
        assert!((1..=6).contains(&attempts), "{attempts}");
        let (start, after) = (Instant::now(), proxy.accepted());
        sleep(Duration::from_secs(3)).await;
        assert_eq!(proxy.accepted(), after, "somebody goes on trying after {:?}", start.elapsed());
    }
}

pub(crate) async fn a_password_that_changes_is_told_and_a_file_with_the_new_one_is_taken() {
    server();
    let (old, new) = ("hunter2-wrong-1", "hunter2-wrong-2");
    tokio::task::spawn_blocking(move || set_password("rotating", 256, old)).await.unwrap();
    let path = store("rotating", old);
    let url = format!("kafka://rotating@localhost:{LOGIN_PORT}?auth=scram-sha-256&password_file={path}");
    // The file is read for every client that is made.
    let broker = connect_to(&url).await.unwrap();
    tokio::task::spawn_blocking(move || set_password("rotating", 256, new)).await.unwrap();
    let error = connect_to(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    store("rotating", new);
    let rig = Rig { broker, queue: fresh_name().parse().unwrap() };
    // What was connected stays so, and what is opened now logs in with the new one.
    rig.broker.declare(&[queue_core::Entry::new(rig.queue.clone())].into_iter().collect()).await.unwrap();
    rig.send(numbered(0..3)).await;
    let consumer = rig.consumer().await;
    assert_eq!(receive(&*consumer, 3).await.len(), 3);
    rig.end().await;
}

pub(crate) async fn options_that_do_not_fit_together_are_refused() {
    for (url, says) in [
        ("kafka://u:hunter2-wrong@h?password_file=/x", "one password"),
        ("kafka://u:hunter2-wrong@h?token_file=/x&auth=oauth2", "one password"),
        ("kafka://u@h?token_file=/x", "auth=oauth2"),
        ("kafka://u@h?auth=oauth2", "token_file"),
        ("kafka://u@h", "a user and a password"),
        ("kafka://u@h?auth=scram-sha-256", "a user and a password"),
        ("kafka://h?auth=plain&password_file=/x", "a user and a password"),
        ("kafka://h?password_file=/x", "needs a user"),
        ("kafkas://h?password_file=/x&auth=external", "auth=plain"),
        ("kafkas://h?auth=external", "client_cert_file"),
        ("kafka://h?auth=external", "client_cert_file"),
        ("kafkas://u@h?auth=external&client_cert_file=/x&client_key_file=/y", "no user"),
        ("kafkas://h?client_cert_file=/x", "go together"),
        ("kafkas://h?client_key_file=/x", "go together"),
        ("kafka://h?ca_file=/x", "kafkas"),
        ("kafka://h?auth=kerberos", "auth"),
        ("kafka://h?kafka.sasl.password=hunter2-wrong", "password_file"),
        ("kafka://h?kafka.sasl.oauthbearer.config=hunter2-wrong", "token_file"),
        ("kafkas://h?kafka.ssl.ca.location=/x", "ca_file"),
        ("kafkas://h?kafka.ssl.key.pem=hunter2-wrong", "librdkafka refuses"),
        ("kafkas://h?ca_file=/nowhere/ca.pem", "/nowhere/ca.pem"),
        ("kafka://u@h?password_file=/nowhere/password", "/nowhere/password"),
        ("kafka://u@h?auth=oauth2&token_file=/nowhere/token", "/nowhere/token"),
    ] {
        let error = connect_to(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}: {error:?}");
        assert!(error.to_string().contains(says), "{url}: {error}");
        assert!(!tells(&format!("{error} {error:?}")), "{error:?}");
    }
    let scheme = queue_core::Client::connect_with("kafkaz://h", &[DRIVER]).await.unwrap_err();
    assert_eq!(scheme.context("did_you_mean"), Some("kafka"), "{scheme}");
}
