//! Tasks with results: a web service hands each to a worker in another process, and answers with what comes back.
//!
//! ```sh
//! cargo run --example tasks --features full -- work &          # as many of these as the tasks need
//! cargo run --example tasks --features full -- serve
//! curl 'http://127.0.0.1:8080/task?task_id=7'
//! ```
//! `QUEUE_URL` says where the tasks go (`amqp://guest:guest@localhost:5672`; the memory broker is that of one process, which is
//! not enough here), `LISTEN` where the service listens, `TIMEOUT` how many seconds a task may take (30). A worker that is
//! killed loses no task: another one gets it, on SQS after a lease of 10 s, on Kafka when the group notices (10 s, `kafka.session.timeout.ms`);
//! `TIMEOUT` has to be longer than that.

use std::process::{ExitCode, Termination};
use std::sync::Arc;
use std::time::Duration;

use anyqueue::worker::{Failure, RunTask, TASKS, Tasks, Worker, signal};
use anyqueue::{Client, ErrorKind};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const TASK: &str = "work";
/// Tasks that one worker does at a time.
const AT_A_TIME: usize = 8;
/// How long the tasks of a worker that is gone stay with it, where the broker cannot see that it is.
const LEASE: Duration = Duration::from_secs(10);
/// How long requests have to end, once the service is to, beside the time that a task may take.
const GRACE: Duration = Duration::from_secs(5);
/// How long a task takes.
const WORK: Duration = Duration::from_millis(200);

/// What comes of a task.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    task_id: String,
    result: String,
    /// The process that did it.
    worker: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    run().await.unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

async fn run() -> Outcome<ExitCode> {
    let setting = |name, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let url = setting("QUEUE_URL", "amqp://guest:guest@localhost:5672");
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>()[..] {
        [Some("serve")] => {
            let timeout = setting("TIMEOUT", "30");
            let Some(timeout) = timeout.parse().ok().filter(|seconds| (1..=3600).contains(seconds)) else {
                return Ok(wrong(&format!("TIMEOUT takes seconds from 1 to 3600, not '{timeout}'")));
            };
            serve(&url, &setting("LISTEN", "127.0.0.1:8080"), Duration::from_secs(timeout)).await?;
            Ok(ExitCode::SUCCESS)
        }
        [Some("work")] => work(&url).await,
        _ => Ok(wrong("usage: tasks serve | work")),
    }
}

fn wrong(why: &str) -> ExitCode {
    eprintln!("{why}");
    ExitCode::from(2)
}

/// Does tasks until it is told to end; those that run are finished before.
async fn work(url: &str) -> Outcome<ExitCode> {
    let client = anyqueue::connect(url).await?;
    // No more than it works on: what waits is for all workers.
    let receiver = client.receiver(TASKS).prefetch(AT_A_TIME).lease(LEASE).await?;
    let worker = Worker::new(receiver).concurrency(AT_A_TIME).until(signal());
    println!("worker {} is ready", std::process::id());
    let report = worker.serve(Tasks::new().task(TASK, done)).await;
    client.close(Duration::from_secs(5)).await;
    Ok(report.report())
}

/// The task itself.
async fn done(task_id: String) -> Result<Done, Failure> {
    tokio::time::sleep(WORK).await;
    if task_id.starts_with("bad") {
        return Err(Failure::permanent(format!("there is nothing to be done for {task_id}")));
    }
    Ok(Done { result: format!("task {task_id} is done"), task_id, worker: std::process::id() })
}

/// What requests need.
struct Service {
    client: Client,
    timeout: Duration,
}

async fn serve(url: &str, listen: &str, timeout: Duration) -> Outcome<()> {
    let client = anyqueue::connect(url).await?;
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("LISTEN '{listen}': {error}"))?;
    println!("http://{}", listener.local_addr()?);
    let service = Arc::new(Service { client: client.clone(), timeout });
    // A HEAD would run a task too.
    let routes = get(task).head(|| async { StatusCode::METHOD_NOT_ALLOWED });
    let routes = Router::new().route("/task", routes).with_state(service);
    tokio::select! {
        served = axum::serve(listener, routes).with_graceful_shutdown(signal()) => served?,
        // A request that never ends holds up nothing.
        () = async { signal().await; tokio::time::sleep(timeout + GRACE).await } => {}
    }
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

#[derive(Deserialize)]
struct Asked {
    task_id: Option<String>,
}

/// Hands a task over and waits for its result; other requests go on meanwhile.
async fn task(
    State(service): State<Arc<Service>>,
    Query(asked): Query<Asked>,
) -> Result<Json<Done>, (StatusCode, String)> {
    let is_id = |id: &String| {
        let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        (1..=64).contains(&id.len()) && id.chars().all(is_fit)
    };
    let Some(task_id) = asked.task_id.filter(is_id) else {
        let why = "task_id is missing, or not 1 to 64 letters, digits, '-' and '_'";
        return Err((StatusCode::BAD_REQUEST, why.to_owned()));
    };
    let ran = service.client.run_task(TASK, &task_id).timeout(service.timeout).await;
    ran.map(Json).map_err(|error| {
        let status = match error.kind() {
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            // The worker says that it cannot be done.
            ErrorKind::Remote => StatusCode::UNPROCESSABLE_ENTITY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, error.message().to_string())
    })
}
