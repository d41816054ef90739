//! A folder and a queue of a case's own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, SqliteConnection};

use crate::process::Running;
use crate::{Outcome, block_on};

pub(crate) struct Place {
    pub(crate) folder: PathBuf,
    pub(crate) url: String,
    /// What the queue's name begins with.
    queue: String,
}

impl Place {
    /// Nothing is left of an earlier time.
    pub(crate) fn new(case: &str, url: &str) -> Outcome<Self> {
        // Two brokers may speak the same protocol.
        let port = url.rsplit_once(':').map_or("", |(_, port)| port.split(['/', '?']).next().unwrap_or_default());
        let queue = format!("pipeline-{case}-{}{port}", url.split(':').next().unwrap_or_default());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(&queue);
        let place = Self { folder, url: url.to_owned(), queue };
        if place.folder.exists() {
            // One that was killed early has no job.
            if place.is_shared()
                && let Ok(queue) = place.queue()
            {
                place.delete(&queue)?;
            }
            fs::remove_dir_all(&place.folder)?;
        }
        fs::create_dir_all(&place.folder)?;
        Ok(place)
    }

    pub(crate) fn on_memory(case: &str) -> Outcome<Self> {
        Self::new(case, "memory://")
    }

    /// Whether other processes reach the queue.
    pub(crate) fn is_shared(&self) -> bool {
        !self.url.starts_with("memory")
    }

    /// The program, with settings of this place.
    pub(crate) fn pipeline(&self, arguments: &[&str]) -> Command {
        let mut command = pipeline(arguments);
        command.env("QUEUE_URL", &self.url).env("QUEUE", &self.queue);
        command.env("STATE", self.folder.join("state.db")).env("OUT", self.folder.join("out"));
        command
    }

    pub(crate) fn out(&self, name: &str) -> Outcome<String> {
        Ok(fs::read_to_string(self.folder.join("out").join(name))?)
    }

    /// The state file.
    pub(crate) async fn state(&self) -> Outcome<SqliteConnection> {
        let options = SqliteConnectOptions::new().filename(self.folder.join("state.db"));
        Ok(options.busy_timeout(Duration::from_secs(60)).connect().await?)
    }

    /// A number out of the state file.
    pub(crate) fn ask(&self, sql: &'static str) -> Outcome<i64> {
        block_on(async { Ok(sqlx::query_scalar(sql).fetch_one(&mut self.state().await?).await?) })
    }

    /// The queue, which is the job's.
    pub(crate) fn queue(&self) -> Outcome<String> {
        let job = async { Ok(sqlx::query_scalar("SELECT job FROM job").fetch_one(&mut self.state().await?).await?) };
        let job: String = block_on(job)?;
        Ok(format!("{}-{job}", self.queue))
    }

    fn delete(&self, queue: &str) -> Outcome {
        block_on(async {
            let client = anyqueue::connect(&self.url).await?;
            for name in [queue.to_owned(), format!("{queue}-dlq")] {
                client.delete(name).await?;
            }
            client.close(Duration::from_secs(5)).await;
            Ok(())
        })
    }

    /// Leaves nothing.
    pub(crate) fn clean(self) -> Outcome {
        if self.is_shared() {
            self.delete(&self.queue()?)?;
        }
        Ok(fs::remove_dir_all(&self.folder)?)
    }
}

/// The program.
pub(crate) fn pipeline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pipeline"));
    command.args(arguments);
    command.env("NO_PROXY", "127.0.0.1");
    command
}

/// Runs the program to its end, which has to be a good one; what it printed. A million records may take as long as they go on.
pub(crate) fn run(mut command: Command) -> Outcome<String> {
    let Output { status, stdout, stderr } = command.output()?;
    if !status.success() {
        return Err(format!("{command:?}: {status}: {}", String::from_utf8_lossy(&stderr)).into());
    }
    Ok(String::from_utf8(stdout)?)
}

/// A server of made-up pages, and where it is.
pub(crate) fn pages(records: u64, per_page: u64) -> Outcome<(Running, String)> {
    let mut command = pipeline(&["pages", &records.to_string(), &per_page.to_string()]);
    command.env("LISTEN", "127.0.0.1:0");
    let pages = Running::start(command)?;
    let at = pages.line()?;
    Ok((pages, at))
}

/// Records, by broker and size of the test, and how many a page has.
pub(crate) fn size(url: &str) -> (u64, u64) {
    let is_full = std::env::var("FULL").is_ok_and(|full| full == "1");
    match (url.starts_with("sqs"), is_full) {
        (false, false) => (20_000, 100),
        (false, true) => (1_000_000, 1000),
        (true, false) => (2000, 10),
        (true, true) => (50_000, 100),
    }
}
