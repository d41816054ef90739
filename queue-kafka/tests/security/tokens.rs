//! Tokens that expire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use queue_core::{Endpoint, Error, ErrorKind, EventKind, Events, HealthState, Result, Source};
use queue_kafka::{KafkaBroker, Token, TokenProvider};
use tokio::time::{Instant, sleep};

use crate::common::*;
use crate::server::*;
use crate::{tells, until};

/// Short, and long enough for a busy machine to renew a token in a quarter of it.
const LIFE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Provider {
    asked: AtomicUsize,
    broken: AtomicBool,
}

#[async_trait]
impl TokenProvider for Provider {
    async fn token(&self) -> Result<Token> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Connection, "the token server is away"));
        }
        Ok(Token::new(token(LIFE)).valid_for(LIFE))
    }
}

fn endpoint() -> Endpoint {
    format!("kafka://localhost:{TOKEN_PORT}").parse().unwrap()
}

/// Makes a topic, which the client cannot do that logs in with a token.
async fn queue() -> queue_core::Address {
    Rig::at(&format!("kafka://localhost:{OPEN_PORT}"), 2).await.queue
}

pub(crate) async fn a_connection_outlives_its_first_token() {
    server();
    let (provider, events) = (Arc::new(Provider::default()), Events::new());
    let mut heard = events.listen();
    let broker = KafkaBroker::connect_with_tokens(&endpoint(), events, provider.clone()).await.unwrap();
    let rig = Rig { broker: Arc::new(broker), queue: queue().await };
    let (producer, consumer) = (rig.producer().await, rig.consumer().await);
    send(&*producer, numbered(0..5)).await;
    consumer.ack(&receive(&*consumer, 5).await.iter().map(|r| r.token).collect::<Vec<_>>());
    consumer.flush().await.unwrap();
    // Past the life of the first token, with one renewal that fails at first. The broker ends a session with its token.
    sleep(LIFE / 2).await;
    provider.broken.store(true, Ordering::SeqCst);
    until("it is told", async || rig.broker.health().problems.iter().any(|p| p.contains("token server is away"))).await;
    assert_eq!(rig.broker.health().state, HealthState::Degraded);
    provider.broken.store(false, Ordering::SeqCst);
    until("it is renewed", async || rig.broker.health().is_up()).await;
    let end = Instant::now() + LIFE * 3 / 2;
    while Instant::now() < end {
        send(&*producer, numbered(0..5)).await;
        consumer.ack(&receive(&*consumer, 5).await.iter().map(|r| r.token).collect::<Vec<_>>());
        consumer.flush().await.unwrap();
        rig.broker.ping().await.unwrap();
        sleep(Duration::from_millis(500)).await;
    }
    // A client of its own for the question.
    assert_eq!(rig.broker.stats(&Source::new(rig.queue.clone())).await.unwrap().lag, Some(0));
    let asked = provider.asked.load(Ordering::SeqCst);
    assert!((4..30).contains(&asked), "{asked}");
    let mut kinds = Vec::new();
    while let Ok(Some(event)) = tokio::time::timeout(Duration::ZERO, heard.next()).await {
        kinds.push(event.kind);
    }
    assert_eq!(kinds, [EventKind::Connected], "the connection was lost");
    assert!(!tells(&format!("{:?} {:?}", rig.broker, rig.broker.health())));
    // What cannot be done over such a login says so.
    let capabilities = rig.broker.capabilities();
    assert!(!capabilities.purge);
    for result in [rig.broker.purge(&rig.queue).await, rig.broker.delete(&rig.queue).await] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    rig.end().await;
    let asked = provider.asked.load(Ordering::SeqCst);
    // Longer than the token takes until it is renewed.
    sleep(LIFE * 4 / 5).await;
    assert_eq!(provider.asked.load(Ordering::SeqCst), asked, "a closed connection needs no token");
}

pub(crate) async fn a_token_file_is_followed() {
    server();
    let path = store("token", &token(LIFE));
    let rig = Rig {
        broker: connect_to(&format!("kafka://localhost:{TOKEN_PORT}?auth=oauth2&token_file={path}")).await.unwrap(),
        queue: queue().await,
    };
    let producer = rig.producer().await;
    send(&*producer, numbered(0..5)).await;
    store("token", "");
    until("it is told", async || rig.broker.health().problems.iter().any(|p| p.contains("the file is empty"))).await;
    assert_eq!(rig.broker.health().state, HealthState::Degraded);
    store("token", &format!("{}\n", token(LIFE * 60)));
    until("it is read", async || rig.broker.health().is_up()).await;
    sleep(LIFE).await;
    // A new connection, and one that had to log in again.
    let consumer = rig.consumer().await;
    send(&*producer, numbered(5..10)).await;
    assert_eq!(receive(&*consumer, 10).await.len(), 10);
    assert!(rig.broker.health().is_up());
    rig.end().await;
}

pub(crate) async fn a_token_that_nobody_renews_is_refused() {
    server();
    let old = token(LIFE);
    let url = format!("kafka://carol:{old}@localhost:{TOKEN_PORT}?auth=oauth2");
    let broker = connect_to(&url).await.unwrap();
    let rig = Rig { broker, queue: queue().await };
    let consumer = rig.consumer().await;
    until("it is refused", async || {
        let health = rig.broker.health();
        health.state == HealthState::Down && health.problems.iter().any(|p| p.contains("the login is refused"))
    })
    .await;
    let error = rig.broker.ping().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(!tells(&format!("{error} {error:?} {:?}", rig.broker.health())), "{error:?}");
    drop(consumer);
    rig.broker.close(in_secs(1)).await;
    let error = connect_to(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(!tells(&format!("{error} {error:?}")), "{error:?}");
}

pub(crate) async fn a_provider_that_fails_is_told_when_connecting() {
    server();
    let provider = Arc::new(Provider::default());
    provider.broken.store(true, Ordering::SeqCst);
    let start = Instant::now();
    let error = KafkaBroker::connect_with_tokens(&endpoint(), Events::new(), provider).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
    assert!(error.to_string().contains("the token server is away"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    struct Silent;

    #[async_trait]
    impl TokenProvider for Silent {
        async fn token(&self) -> Result<Token> {
            std::future::pending().await
        }
    }

    let mut endpoint = endpoint();
    endpoint.connect_timeout = Duration::from_secs(1);
    let error = KafkaBroker::connect_with_tokens(&endpoint, Events::new(), Arc::new(Silent)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
}
