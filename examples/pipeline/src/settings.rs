//! What the environment says.

use std::env::VarError;
use std::fmt;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use anyqueue::{Client, ErrorKind};

use crate::Outcome;

/// Most workers of a process: with the batches that wait for them, what RabbitMQ hands out unanswered.
const MOST_WORKERS: usize = 60;
/// Bytes of `QUEUE`: what every broker takes, with room for the job and the name of the dead letters.
const LONGEST_NAME: usize = 40;
/// How long the broker has to take what is still on its way, at the end.
const CLOSE: Duration = Duration::from_secs(10);

/// A wrong argument or setting, and what would be right.
#[derive(Debug)]
pub(crate) struct Wrong(String);

impl Wrong {
    pub(crate) fn error(why: impl Into<String>) -> Box<dyn std::error::Error + Send + Sync> {
        Box::new(Self(why.into()))
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

/// The arguments of the program.
pub(crate) fn arguments() -> Outcome<Vec<String>> {
    let text = |argument: std::ffi::OsString| {
        argument.into_string().map_err(|argument| Wrong::error(format!("{} is no text", argument.display())))
    };
    std::env::args_os().skip(1).map(text).collect()
}

/// A variable of the environment, or what holds without it.
pub(crate) fn setting(name: &str, default: &str) -> Outcome<String> {
    match std::env::var(name) {
        Ok(value) => Ok(value),
        Err(VarError::NotPresent) => Ok(default.to_owned()),
        Err(VarError::NotUnicode(_)) => Err(Wrong::error(format!("{name} is no text"))),
    }
}

/// Settings of `run` and `work`.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) url: String,
    queue: String,
    pub(crate) state: PathBuf,
    pub(crate) out: PathBuf,
    pub(crate) workers: usize,
}

impl Settings {
    pub(crate) fn read() -> Outcome<Self> {
        let queue = setting("QUEUE", "pipeline")?;
        let is_fit = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let is_single = !queue.contains("--") && !queue.ends_with('-');
        if !(1..=LONGEST_NAME).contains(&queue.len()) || !queue.chars().all(is_fit) || !is_single {
            let rule = format!("1 to {LONGEST_NAME} letters, digits and single hyphens between them");
            return Err(Wrong::error(format!("QUEUE takes {rule}, not '{queue}'")));
        }
        let cores = available_parallelism().map_or(1, |cores| cores.get().min(MOST_WORKERS));
        let workers = setting("WORKERS", &cores.to_string())?;
        let Some(workers) = workers.parse().ok().filter(|workers| (1..=MOST_WORKERS).contains(workers)) else {
            return Err(Wrong::error(format!("WORKERS takes a number from 1 to {MOST_WORKERS}, not '{workers}'")));
        };
        let path = |name, default| match setting(name, default)? {
            path if path.is_empty() => Err(Wrong::error(format!("{name} takes a path, not ''"))),
            path => Ok(PathBuf::from(path)),
        };
        Ok(Self {
            url: setting("QUEUE_URL", "memory://")?,
            queue,
            state: path("STATE", "pipeline.db")?,
            out: path("OUT", ".")?,
            workers,
        })
    }

    /// The queue of a job: two runs never share one, and with the STATE of another a worker takes nothing.
    pub(crate) fn queue(&self, job: &str) -> String {
        format!("{}-{job}", self.queue)
    }

    pub(crate) async fn connect(&self) -> Outcome<Client> {
        anyqueue::connect(&self.url).await.map_err(|error| match error.kind() {
            ErrorKind::InvalidConfig | ErrorKind::InvalidInput => Wrong::error(format!("QUEUE_URL: {error}")),
            _ => error.into(),
        })
    }
}

/// Closes a client; what it cannot do is no error here, since a later run does it again.
pub(crate) async fn close(client: Client) {
    client.close(CLOSE).await;
}
