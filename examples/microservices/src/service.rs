//! What each service is made of, how it starts and how it ends.

use std::time::Duration;

use anyqueue::worker::{Breaker, Failure, Job, Json, Worker, signal};
use anyqueue::{Client, Health};
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::get;
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::Outcome;
use crate::database::Database;
use crate::outbox::Outbox;
use crate::rest::{MOST, Wrong};
use crate::settings;

/// Messages that are handled at a time.
const AT_A_TIME: usize = 16;
/// How long the messages of a service that is gone stay with it, where the broker cannot see that it is.
const LEASE: Duration = Duration::from_secs(10);
/// Other failures in a row after which no more messages are tried for a while. One of the database is enough for that.
const FAILURES: u32 = 8;
/// How long until one message tries whether the database is back; doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How long handlers have to end, once the service is to; answers have 5 s more to reach the broker.
const DRAIN: Duration = Duration::from_secs(5);
/// How long all that runs has to end.
const GRACE: Duration = Duration::from_secs(12);
/// How long the outbox has to send the last rows, and client and database to close.
const LAST: Duration = Duration::from_secs(5);

/// What requests and handlers need; cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) database: Database,
    pub(crate) outbox: Outbox,
    client: Client,
}

/// What one service has of its own.
pub(crate) struct Own {
    /// Where it listens, and its database, unless the settings say otherwise.
    pub(crate) listen: &'static str,
    pub(crate) database: &'static str,
    pub(crate) tables: &'static str,
    pub(crate) routes: Router<Service>,
    /// The queue that it consumes.
    pub(crate) queue: &'static str,
}

/// Runs a service until it is told to end. The handler gets the messages of its queue, read as JSON; what cannot be read so is
/// a dead letter.
pub(crate) async fn run<M, F, Handled>(own: Own, handler: F) -> Outcome
where
    M: DeserializeOwned + Send + 'static,
    F: Fn(Service, M, Job) -> Handled + Send + 'static,
    Handled: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let Own { listen, database, tables, routes, queue } = own;
    let (listen, file, url) = (settings::listen(listen)?, settings::database(database)?, settings::queue_url()?);
    let database = Database::open(&file, tables).await?;
    let client = anyqueue::connect(&url).await?;
    let outbox = Outbox::new(client.clone(), database.clone());
    let service = Service { database, outbox, client };
    let receiver = service.client.receiver(queue).lease(LEASE).await?;
    let listener =
        TcpListener::bind(listen).await.map_err(|error| format!("{listen} cannot be listened at: {error}"))?;
    println!("http://{}", listener.local_addr()?);

    let (end, ends) = watch::channel(());
    let ended = || {
        let mut ends = ends.clone();
        // Answers when the other side is dropped.
        async move { while ends.changed().await.is_ok() {} }
    };
    let breaker = Breaker::new(FAILURES).pause(PAUSE, LONGEST_PAUSE);
    let worker = Worker::new(receiver).concurrency(AT_A_TIME).breaker(breaker).drain(DRAIN).until(ended());
    let handling = service.clone();
    let handler = move |Json(message): Json<M>, job: Job| handler(handling.clone(), message, job);
    let served = axum::serve(listener, with_health(routes, service.clone())).with_graceful_shutdown(ended());
    let mut parts = JoinSet::<Outcome>::new();
    parts.spawn(
        async move { worker.serve(handler).await.errors.into_iter().next().map_or(Ok(()), |why| Err(why.into())) },
    );
    parts.spawn(async move { Ok(served.await?) });
    parts.spawn(service.outbox.clone().run(ended()));

    // A part that ends by itself, because its queue was deleted say, ends all: whoever runs the service starts it anew.
    let first = tokio::select! {
        () = signal() => Ok(()),
        Some(part) = parts.join_next() => part?,
    };
    drop(end);
    // A request that never ends holds up nothing.
    let _ = timeout(GRACE, async {
        while let Some(part) = parts.join_next().await {
            if let Err(error) = part.map_err(Into::into).flatten() {
                // A message whose answer did not reach the broker comes again, and changes nothing.
                eprintln!("at the end: {error}");
            }
        }
    })
    .await;
    // What is not sent now is sent by the next start.
    let _ = timeout(LAST, service.outbox.send_all()).await;
    service.client.close(LAST).await;
    let _ = timeout(LAST, service.database.close()).await;
    first
}

fn with_health(routes: Router<Service>, service: Service) -> Router {
    routes
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .fallback(|| async { Wrong(StatusCode::NOT_FOUND, "there is nothing here".to_owned()) })
        .method_not_allowed_fallback(|| async {
            Wrong(StatusCode::METHOD_NOT_ALLOWED, "this method is not for that".to_owned())
        })
        .layer(DefaultBodyLimit::max(MOST))
        .with_state(service)
}

/// Fails for as long as only a new process helps.
async fn live(State(service): State<Service>) -> (StatusCode, String) {
    let health = service.client.health();
    answer(health.is_live(), &health)
}

/// Fails while the broker does not work. Orders are taken all the same: they wait in the outbox.
async fn ready(State(service): State<Service>) -> (StatusCode, String) {
    let health = service.client.health();
    answer(health.is_ready(), &health)
}

fn answer(well: bool, health: &Health) -> (StatusCode, String) {
    let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, format!("{:?}\n{}", health.state, health.problems.join("\n")))
}
