//! A web service with a queue: `POST /produce` puts a message on it (a form, JSON or any other body), `GET /consume` takes one,
//! `GET /` is a page that does both and shows how many there are.
//!
//! ```sh
//! cargo run --example web --features worker,otel                 # on the embedded memory broker, at http://127.0.0.1:8080
//! curl -d 'message=hello' http://127.0.0.1:8080/produce
//! curl -H 'content-type: application/json' -d '{"message": "hello"}' http://127.0.0.1:8080/produce
//! curl -T picture.png -X POST http://127.0.0.1:8080/produce
//! curl http://127.0.0.1:8080/consume
//! ```
//! With all features, `QUEUE_URL` chooses another broker; `QUEUE` names the queue (`web`), `LISTEN` says where the service listens.
//! `/health/live` and `/health/ready` are for probes, `/metrics` is for Prometheus.

use std::convert::Infallible;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use anyqueue::worker::signal;
use anyqueue::{Answered, Client, Delivery, Error, ErrorKind, Health, Message, Receiver, Sender, Source};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine;
use futures::Stream;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// How long `GET /consume` waits for a message.
const WAIT: Duration = Duration::from_secs(1);
/// Messages that are fetched ahead while requests wait for some.
const AHEAD: usize = 16;
/// What was fetched and nobody has asked for in this time, or twice as long, is given back.
const IDLE: Duration = Duration::from_secs(2);
/// Nothing fails here, and SQS counts what is given back.
const DELIVERIES: u32 = 500;
/// How long requests have to end, once the service is to.
const GRACE: Duration = Duration::from_secs(10);
/// How often the page is told how many there are.
const TICK: Duration = Duration::from_secs(1);
/// Bytes of a body: what each broker takes.
const MOST: usize = 256 * 1024;
const PAGE: &str = include_str!("web.html");

/// What requests need.
struct Service {
    client: Client,
    queue: String,
    sender: Sender,
    inbox: Inbox,
    depth: watch::Receiver<Option<u64>>,
    registry: Registry,
}

/// Where requests take their messages: fetched ahead while somebody asks, given back when nobody does.
struct Inbox {
    receiver: Mutex<Receiver>,
    /// Whether somebody has asked lately.
    asked: AtomicBool,
}

impl Inbox {
    async fn open(client: &Client, queue: &str) -> anyqueue::Result<Self> {
        Ok(Self { receiver: Mutex::new(fetched(client, queue).await?), asked: AtomicBool::new(false) })
    }

    /// The next message. Dropped, it takes none.
    async fn take(&self) -> anyqueue::Result<Delivery> {
        self.asked.store(true, Ordering::Relaxed);
        let mut receiver = self.receiver.lock().await;
        receiver.resume();
        receiver.receive().await
    }

    /// Gives back what nobody asks for.
    async fn tidy(&self) {
        loop {
            sleep(IDLE).await;
            if !self.asked.swap(false, Ordering::Relaxed)
                // Else somebody is there.
                && let Ok(mut receiver) = self.receiver.try_lock()
            {
                receiver.pause();
                receiver.give_back();
            }
        }
    }
}

/// A receiver that fetches nothing yet.
async fn fetched(client: &Client, queue: &str) -> anyqueue::Result<Receiver> {
    let opening = client.receiver(queue).prefetch(AHEAD).max_deliveries(DELIVERIES);
    let receiver = opening.await?;
    receiver.pause();
    Ok(receiver)
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = run().await else { return ExitCode::SUCCESS };
    eprintln!("{error}");
    ExitCode::FAILURE
}

async fn run() -> Outcome {
    let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let queue = setting("QUEUE", "web");
    // Before the client connects, so that connections are counted from the first on.
    let registry = Registry::new();
    let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build()?;
    let provider = SdkMeterProvider::builder().with_reader(exporter).build();
    anyqueue::otel::record_metrics(&provider.meter("web"));

    let client = anyqueue::connect(&setting("QUEUE_URL", "memory://")).await?;
    let sender = client.sender(&*queue).await?;
    let inbox = Inbox::open(&client, &queue).await?;
    let (told, depth) = watch::channel(None);
    let mut tasks = JoinSet::new();
    tasks.spawn(ask(client.clone(), Source::new(queue.parse()?), told));

    let listen = setting("LISTEN", "127.0.0.1:8080");
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("LISTEN '{listen}': {error}"))?;
    println!("http://{}", listener.local_addr()?);
    let service = Arc::new(Service { client: client.clone(), queue, sender, inbox, depth, registry });
    let tidied = service.clone();
    tasks.spawn(async move { tidied.inbox.tidy().await });
    let routes = Router::new()
        .route("/", get(|| async { Html(PAGE) }))
        .route("/produce", post(produce))
        // A HEAD would take a message too.
        .route("/consume", get(consume).head(|| async { StatusCode::METHOD_NOT_ALLOWED }))
        .route("/depth", get(depths))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(MOST))
        .with_state(service);
    let end = async move {
        signal().await;
        // Pages that listen would keep the server.
        tasks.abort_all();
    };
    tokio::select! {
        served = axum::serve(listener, routes).with_graceful_shutdown(end) => served?,
        // A request that never ends holds up nothing.
        () = async { signal().await; sleep(GRACE).await } => {}
    }
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

/// Asks how many messages there are, for all pages.
async fn ask(client: Client, source: Source, told: watch::Sender<Option<u64>>) {
    loop {
        let stats = client.stats(&source).await.ok();
        told.send_replace(stats.and_then(|stats| stats.ready));
        sleep(TICK).await;
    }
}

/// What went wrong, as a status with a text.
struct Wrong(StatusCode, String);

impl IntoResponse for Wrong {
    fn into_response(self) -> Response {
        (self.0, Json(json!({ "error": self.1 }))).into_response()
    }
}

impl From<Error> for Wrong {
    fn from(error: Error) -> Self {
        let status = match error.kind() {
            ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorKind::InvalidInput | ErrorKind::Unsupported => StatusCode::BAD_REQUEST,
            ErrorKind::Connection | ErrorKind::Timeout | ErrorKind::Throttled | ErrorKind::Closed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::BAD_GATEWAY,
        };
        Self(status, error.to_string())
    }
}

/// A form or JSON with a message.
#[derive(Deserialize)]
struct Produced {
    message: String,
}

/// Answers when the broker has the message.
async fn produce(State(service): State<Arc<Service>>, headers: HeaderMap, body: Bytes) -> Result<Response, Wrong> {
    let message = read(&headers, body).map_err(|why| Wrong(StatusCode::BAD_REQUEST, why))?;
    let sent = service.sender.send(message.timestamp(SystemTime::now())).await?;
    let position = json!({ "id": sent.id, "partition": sent.partition, "offset": sent.offset });
    Ok((StatusCode::CREATED, Json(position)).into_response())
}

fn read(headers: &HeaderMap, body: Bytes) -> Result<Message, String> {
    let content_type = match headers.get(header::CONTENT_TYPE).map(|value| value.to_str()) {
        Some(Ok(content_type)) => content_type,
        Some(Err(_)) => return Err("the content type is no text".to_owned()),
        None => "",
    };
    let text = match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
        "application/json" => serde_json::from_slice::<Produced>(&body)
            .map_err(|error| format!(r#"expected JSON as {{"message": "hello"}}: {error}"#))?,
        "application/x-www-form-urlencoded" => serde_urlencoded::from_bytes::<Produced>(&body)
            .map_err(|error| format!("expected a form as message=hello: {error}"))?,
        "" => return Ok(Message::new(body)),
        _ => return Ok(Message::new(body).content_type(content_type.to_owned())),
    };
    Ok(Message::new(text.message).content_type("text/plain; charset=utf-8"))
}

/// Takes one message, works on it and acknowledges it; `204 No Content` where there is none.
async fn consume(State(service): State<Arc<Service>>) -> Result<Response, Wrong> {
    let end = Instant::now() + WAIT;
    loop {
        let delivery = match timeout_at(end, service.inbox.take()).await {
            Ok(Ok(delivery)) => delivery,
            Ok(Err(error)) => {
                // The receiver has ended, as it does when its queue is deleted: another one for those who come.
                if let Ok(receiver) = fetched(&service.client, &service.queue).await {
                    *service.inbox.receiver.lock().await = receiver;
                }
                return Err(error.into());
            }
            // There is none, or nobody to ask.
            Err(_) if service.client.health().is_ready() => return Ok(StatusCode::NO_CONTENT.into_response()),
            Err(_) => return Err(Wrong(StatusCode::SERVICE_UNAVAILABLE, service.client.health().problems.join("; "))),
        };
        let answer = work(&delivery);
        // However late it is: acknowledged and not answered, a message would be lost; where nobody knows, it is answered twice
        // rather than never. One whose lease is over comes again, to somebody else perhaps.
        if !matches!(delivery.ack_confirmed().await, Ok(Answered::LeaseLost)) {
            return Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response());
        }
    }
}

/// The work on a message: it is shown.
fn work(delivery: &Delivery) -> serde_json::Value {
    let base64 = || base64::engine::general_purpose::STANDARD.encode(delivery.payload());
    json!({
        "message": delivery.text(),
        "base64": delivery.text().is_none().then(base64),
        "bytes": delivery.payload().len(),
        "content_type": delivery.get_content_type(),
        "attempt": delivery.attempt(),
    })
}

/// How many messages there are, as events.
async fn depths(State(service): State<Arc<Service>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let depth = service.depth.clone();
    let events = futures::stream::unfold((depth, true), |(mut depth, first)| async move {
        if !first {
            // Ends with the service.
            depth.changed().await.ok()?;
        }
        let now = *depth.borrow_and_update();
        let event = Event::default().data(now.map_or_else(|| "?".to_owned(), |now| now.to_string()));
        Some((Ok(event), (depth, false)))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// Fails for as long as only a new process helps.
async fn live(State(service): State<Arc<Service>>) -> (StatusCode, String) {
    let health = service.client.health();
    answer(health.is_live(), &health)
}

/// Fails while the broker does not work.
async fn ready(State(service): State<Arc<Service>>) -> (StatusCode, String) {
    let health = service.client.health();
    answer(health.is_ready(), &health)
}

fn answer(well: bool, health: &Health) -> (StatusCode, String) {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{:?}\n{}", health.state, health.problems.join("\n")))
}

async fn metrics(State(service): State<Arc<Service>>) -> Result<String, Wrong> {
    let text = TextEncoder::new().encode_to_string(&service.registry.gather());
    text.map_err(|error| Wrong(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}
