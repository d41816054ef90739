//! A service as an orchestrator and a monitor see it: `GET /health/live`, `GET /health/ready`, `GET /metrics` for
//! Prometheus; `POST /orders` sends its body as a message, and a worker handles it. `docs/grafana.json` is the dashboard.
//!
//! `cargo run --example service --features worker,otel` runs on the embedded memory broker and listens on 127.0.0.1:8080.
//! With all features, `QUEUE_URL` chooses another broker, and `LISTEN` another address.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyqueue::worker::{Failure, Job, OrFail, Worker, signal};
use anyqueue::{Client, Message, Sender};
use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use prometheus::{Registry, TextEncoder};
use tokio::net::TcpListener;

pub(crate) type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What requests need.
struct Service {
    client: Client,
    orders: Sender,
    registry: Registry,
}

#[tokio::main]
#[allow(dead_code, reason = "a test runs the service by itself")]
async fn main() -> Outcome {
    let url = std::env::var("QUEUE_URL").unwrap_or_else(|_| "memory://".to_owned());
    let listen = std::env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8080".to_owned());
    let listener = TcpListener::bind(listen).await?;
    println!("http://{}", listener.local_addr()?);
    run(&url, "orders", listener, signal()).await
}

/// Serves until `end`: first no more requests are taken, then the worker drains, then the client closes.
pub(crate) async fn run(
    url: &str,
    queue: &str,
    listener: TcpListener,
    end: impl Future<Output = ()> + Send + 'static,
) -> Outcome {
    // Before the client connects, so that connections are counted from the first on.
    let registry = observe()?;
    let client = anyqueue::connect(url).await?;
    let orders = client.sender(queue).await?;
    let receiver = client.receiver(queue).backoff(Duration::from_millis(100), Duration::from_secs(1)).await?;
    let worker = Worker::new(receiver).concurrency(16);
    let control = worker.control();
    let worker = tokio::spawn(worker.serve(ship));

    let service = Arc::new(Service { client: client.clone(), orders, registry });
    let routes = Router::new()
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/orders", post(order))
        .with_state(service);
    axum::serve(listener, routes).with_graceful_shutdown(end).await?;
    control.stop();
    worker.await?;
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

/// Metrics go to Prometheus; messages carry the context of traces.
fn observe() -> Outcome<Registry> {
    opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
    let registry = Registry::new();
    let exporter = opentelemetry_prometheus::exporter().with_registry(registry.clone()).build()?;
    let provider = SdkMeterProvider::builder().with_reader(exporter).build();
    anyqueue::otel::record_metrics(&provider.meter("service"));
    opentelemetry::global::set_meter_provider(provider);
    Ok(registry)
}

/// Fails for as long as only a new process helps: the broker being away is no reason, its connection comes back.
async fn live(State(service): State<Arc<Service>>) -> (StatusCode, String) {
    let health = service.client.health();
    answer(health.is_live(), &health)
}

/// Fails while the broker does not work: no requests should come here.
async fn ready(State(service): State<Arc<Service>>) -> (StatusCode, String) {
    let health = service.client.health();
    answer(health.is_ready(), &health)
}

fn answer(well: bool, health: &anyqueue::Health) -> (StatusCode, String) {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{:?}\n{}", health.state, health.problems.join("\n")))
}

async fn metrics(State(service): State<Arc<Service>>) -> Result<String, (StatusCode, String)> {
    let text = TextEncoder::new().encode_to_string(&service.registry.gather());
    text.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

async fn order(State(service): State<Arc<Service>>, body: String) -> (StatusCode, String) {
    // RabbitMQ does not tell when a message was sent, so the message does.
    let message = Message::new(body).timestamp(SystemTime::now());
    match service.orders.send(message).await {
        Ok(_) => (StatusCode::ACCEPTED, String::new()),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()),
    }
}

/// An order is a number. What is none is a dead letter; the carrier refuses every order of 13 once.
async fn ship(job: Job) -> Result<(), Failure> {
    let number: u32 = job.text().unwrap_or_default().parse().or_permanent()?;
    if number == 13 && job.attempt() == 1 {
        return Err(Failure::temporary("the carrier is superstitious"));
    }
    tokio::time::sleep(Duration::from_millis(u64::from(number))).await;
    Ok(())
}
