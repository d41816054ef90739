//! A worker in a process of its own: this program again.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Termination};
use std::sync::Arc;
use std::time::Duration;

use anyqueue::worker::{Job, Worker, signal};

use crate::Outcome;
use crate::place::LEASE;

const URL: &str = "WORKER_CHILD_URL";
const QUEUE: &str = "WORKER_CHILD_QUEUE";
const DIARY: &str = "WORKER_CHILD_DIARY";
const HANDLERS: &str = "WORKER_CHILD_HANDLERS";
/// The message that kills its process.
pub(crate) const POISON: &str = "poison";

/// Whether this process is a worker.
pub(crate) fn is_wanted() -> bool {
    std::env::var_os(URL).is_some()
}

/// Works until it is told to end, and keeps a diary of what handlers do.
pub(crate) fn run() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let [url, queue, diary, handlers] = [URL, QUEUE, DIARY, HANDLERS].map(|name| std::env::var(name).unwrap());
        let diary = Arc::new(OpenOptions::new().append(true).create(true).open(diary).unwrap());
        let client = anyqueue::connect(&url).await.unwrap();
        let receiver = client.receiver(queue).lease(LEASE).await.unwrap();
        let worker = Worker::new(receiver).concurrency(handlers.parse().unwrap()).until(signal());
        let report = worker
            .serve(move |job: Job| {
                let diary = diary.clone();
                async move {
                    let (name, attempt) = (job.text().unwrap_or_default(), job.attempt());
                    write(&diary, &format!("begins {name} {attempt}\n"));
                    if name == POISON {
                        std::process::abort();
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    write(&diary, &format!("ends {name} {attempt}\n"));
                }
            })
            .await;
        client.close(LEASE).await;
        write_report(&report);
        report.report()
    })
}

/// In one call, so that a process that is killed writes a line or none.
fn write(mut diary: &File, line: &str) {
    diary.write_all(line.as_bytes()).unwrap();
}

fn write_report(report: &anyqueue::worker::Report) {
    println!("{:?}", report.counts);
    report.errors.iter().for_each(|error| eprintln!("{error}"));
}

/// A process that works; killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(url: &str, queue: &str, diary: &Path, handlers: usize) -> Outcome<Self> {
        let child = Command::new(std::env::current_exe()?)
            .env(URL, url)
            .env(QUEUE, queue)
            .env(DIARY, diary)
            .env(HANDLERS, handlers.to_string())
            .spawn()?;
        Ok(Self(child))
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self) -> Outcome {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Tells it to end, as an orchestrator does, and waits until it has. Whether it ended well.
    pub(crate) fn end(&mut self) -> Outcome<bool> {
        let told = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status()?;
        assert!(told.success());
        Ok(self.0.wait()?.success())
    }

    pub(crate) fn has_ended(&mut self) -> Outcome<bool> {
        Ok(self.0.try_wait()?.is_some())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// What handlers did, by name of the message.
pub(crate) struct Diary(PathBuf);

impl Diary {
    pub(crate) fn new(name: &str) -> Self {
        Self(PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.diary", std::process::id())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// The names behind a word, each as often as it stands there.
    pub(crate) fn names(&self, word: &str) -> Vec<String> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        lines.filter(|line| line[0] == word).map(|line| line[1].to_owned()).collect()
    }
}

impl Drop for Diary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
