//! Tokens that expire.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use queue_amqp::{AmqpBroker, Token, TokenProvider};
use queue_core::{Broker, Endpoint, Error, ErrorKind, Events, HealthState, Result};
use tokio::time::{sleep, timeout};

use crate::common::{connect, producer, queue, send_all, until};
use crate::server::{PLAIN_PORT, server, store, token};

/// Short, and long enough for a busy machine to renew a token in a quarter of it.
const LIFE: Duration = Duration::from_secs(8);

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
    format!("amqp://localhost:{PLAIN_PORT}?max_backoff=500ms").parse().unwrap()
}

pub(crate) async fn a_connection_outlives_its_first_token() {
    server();
    let (provider, events) = (Arc::new(Provider::default()), Events::new());
    let broker = AmqpBroker::connect_with_tokens(&endpoint(), events.clone(), provider.clone()).await.unwrap();
    let broker: Arc<dyn Broker> = Arc::new(broker);
    let mut heard = events.listen();
    let address = queue(&broker, "token").await;
    let sender = producer(&broker, &address).await;
    // Past the life of the first token, with one renewal that fails at first.
    sleep(LIFE / 2).await;
    provider.broken.store(true, Ordering::SeqCst);
    until("it is told", async || broker.health().problems.iter().any(|p| p.contains("token server is away"))).await;
    assert_eq!(broker.health().state, HealthState::Degraded);
    provider.broken.store(false, Ordering::SeqCst);
    until("it is renewed", async || broker.health().is_up()).await;
    sleep(LIFE).await;
    send_all(&sender, vec!["late".into()]).await;
    // What is allowed is asked anew on a channel of its own.
    let other = queue(&broker, "token").await;
    broker.delete(&other).await.unwrap();
    broker.delete(&address).await.unwrap();
    assert!(provider.asked.load(Ordering::SeqCst) >= 4);
    assert!(timeout(Duration::ZERO, heard.next()).await.is_err(), "the connection was lost");
    assert!(!format!("{broker:?}").contains("eyJ"));
}

pub(crate) async fn a_token_file_is_followed() {
    server();
    let path = store("token", &token(LIFE));
    let url = format!("amqp://localhost:{PLAIN_PORT}?auth=oauth2&token_file={path}&max_backoff=500ms");
    let endpoint: Endpoint = url.parse().unwrap();
    let events = Events::new();
    let broker: Arc<dyn Broker> = Arc::new(AmqpBroker::connect(&endpoint, events.clone()).await.unwrap());
    let mut heard = events.listen();
    let address = queue(&broker, "token-file").await;
    let sender = producer(&broker, &address).await;
    sleep(LIFE / 4).await;
    store("token", &token(LIFE * 60));
    sleep(LIFE).await;
    send_all(&sender, vec!["late".into()]).await;
    broker.purge(&address).await.unwrap();
    assert!(timeout(Duration::ZERO, heard.next()).await.is_err(), "the connection was lost");
    broker.delete(&address).await.unwrap();
}

pub(crate) async fn a_token_that_nobody_renews_is_refused() {
    server();
    let url = format!("amqp://carol:{}@localhost:{PLAIN_PORT}?auth=oauth2&max_backoff=500ms", token(LIFE));
    let broker = connect(&url).await.unwrap();
    let address = queue(&broker, "token-old").await;
    // The server may refuse what is asked, or close the connection.
    until("it is refused", async || match broker.purge(&address).await {
        Ok(()) => false,
        Err(error) => {
            assert!(!format!("{error} {error:?}").contains("eyJ"), "{error:?}");
            eprintln!("without renewal: {error}");
            error.kind() == ErrorKind::Unauthorized || broker.health().state == HealthState::Down
        }
    })
    .await;
    let shown = format!("{:?} {broker:?}", broker.health());
    assert!(!shown.contains("eyJ"), "{shown}");
    let error = connect(&url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    assert!(!format!("{error} {error:?}").contains("eyJ"), "{error:?}");
    let renewed = connect(&url.replace(url.split([':', '@']).nth(2).unwrap(), &token(LIFE))).await.unwrap();
    renewed.delete(&address).await.unwrap();
}
