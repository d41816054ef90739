//! Processes are killed in the middle.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use sqlx::SqliteConnection;
use tokio::sync::Semaphore;
use tokio::time::sleep;

use crate::expected::{fetched, result};
use crate::front::Front;
use crate::place::{Place, pages, run, size};
use crate::process::{Running, refused};
use crate::whole::{plotted, summed};
use crate::{Outcome, block_on};

/// More than it takes until something is under way.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long nothing is under way until one more page comes.
const QUIET: Duration = Duration::from_secs(2);
/// How long a page takes before the gate is open, so that there is a middle.
const SLOW: Duration = Duration::from_millis(200);

pub(crate) fn exact(url: &str) -> Outcome {
    let place = Place::new("killed", url)?;
    let (records, per_page) = size(url);
    let (server, at) = pages(records, per_page)?;
    let count = records.div_ceil(per_page);
    // Nobody ends before the last tenth is let go.
    let gate = Arc::new(Semaphore::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let front = runtime.block_on(slow(at.clone(), count - count / 10, gate.clone()))?;

    if place.is_shared() {
        let why = format!("STATE '{}' is not there: ", place.folder.join("state.db").display());
        assert!(refused(place.pipeline(&["work"]))?.starts_with(&why));
    }
    let first = Running::start(together(&place.pipeline(&["run", &front.at])))?;
    let mut has_begun = is_some(&first.line()?)?;
    // Their STATE is there now.
    let mut workers = if place.is_shared() { vec![worker(&place)?, worker(&place)?] } else { Vec::new() };
    while !has_begun {
        has_begun = is_some(&first.line()?)?;
    }
    let held = runtime.block_on(hold(&place, &gate, count / 10))?;
    // One worker is killed; another one is frozen, with records that others do meanwhile.
    drop(workers.pop());
    workers.iter().try_for_each(frozen)?;
    drop(first);
    let done = place.ask("SELECT sum(records) FROM seconds")?;
    assert!((1..i64::try_from(records)?).contains(&done), "{done}");
    drop(held);

    gate.close();
    if place.is_shared() {
        workers.push(worker(&place)?);
    }
    let said = run(place.pipeline(&["run", &front.at]))?;
    println!("killed after {done}");
    let pages = block_on(fetched(&at))?;
    let expected = result(pages.iter().map(String::as_str))?;
    assert_eq!(place.out("result.csv")?, expected);
    summed(&said, &format!("{count} pages, {records} records of 100 stations, 0 bad; "));
    plotted(&place)?;

    if let Some(late) = workers.first() {
        // What it adds now was added long ago.
        tell("-CONT", late)?;
        let parts = workers.into_iter().map(ended).collect::<Outcome<Vec<_>>>()?;
        println!("workers did {parts:?}");
        assert!(parts.iter().sum::<u64>() > 0);
        let said = run(place.pipeline(&["run", &front.at]))?;
        summed(&said, &format!("{count} pages, {records} records of 100 stations, 0 bad; 0 of them in "));
        assert_eq!(place.out("result.csv")?, expected);
    }
    server.interrupt()?;
    place.clean()
}

/// Stops each thread of a process where it is. One that went on could get the state file to itself.
fn frozen(worker: &(Running, String)) -> Outcome {
    tell("-STOP", worker)?;
    // What is in brackets is a name.
    let is_stopped = |stat: String| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'));
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let threads = fs::read_dir(format!("/proc/{}/task", worker.1))?.collect::<Result<Vec<_>, _>>()?;
        if threads.iter().all(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(is_stopped)) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Err("it does not stop".into())
}

/// Sends a signal.
fn tell(signal: &str, (_, id): &(Running, String)) -> Outcome {
    if Command::new("kill").args([signal, id]).status()?.success() { Ok(()) } else { Err("it is gone".into()) }
}

/// More workers, and the id of their process.
fn worker(place: &Place) -> Outcome<(Running, String)> {
    let worker = Running::start(place.pipeline(&["work"]))?;
    let line = worker.line()?;
    let end = format!(" is ready, at {}", place.queue()?);
    let id = line.strip_prefix("worker ").and_then(|line| line.strip_suffix(&*end));
    Ok((worker, id.ok_or(&*line)?.to_owned()))
}

/// Ends workers as Ctrl-C does; how many records they did.
fn ended(worker: (Running, String)) -> Outcome<u64> {
    tell("-INT", &worker)?;
    let line = worker.0.line()?;
    let (records, _) = line.split_once(" records, 0 dead letters").ok_or(&*line)?;
    Ok(records.parse()?)
}

/// Takes the state file when records are queued and not aggregated, so that those who are killed leave some behind. Where all
/// are aggregated before that is seen, one more page of those behind the gate comes, but for the last one.
async fn hold(place: &Place, gate: &Semaphore, behind: u64) -> Outcome<SqliteConnection> {
    let mut state = place.state().await?;
    let missing = "SELECT coalesce(sum(missing), 0) FROM pages WHERE sent";
    let (mut begun, mut let_through) = (Instant::now(), 1);
    while begun.elapsed() < PATIENCE {
        // A reader waits for nobody.
        if sqlx::query_scalar::<_, i64>(missing).fetch_one(&mut state).await? > 0 {
            sqlx::query("BEGIN IMMEDIATE").execute(&mut state).await?;
            if sqlx::query_scalar::<_, i64>(missing).fetch_one(&mut state).await? > 0 {
                // They are with the broker then.
                sleep(SLOW).await;
                return Ok(state);
            }
            sqlx::query("ROLLBACK").execute(&mut state).await?;
        } else if begun.elapsed() > QUIET && let_through < behind {
            gate.add_permits(1);
            (begun, let_through) = (Instant::now(), let_through + 1);
        }
        sleep(Duration::from_millis(1)).await;
    }
    Err("nothing is under way".into())
}

/// What it says on stderr is printed too.
pub(crate) fn together(command: &Command) -> Command {
    let mut both = Command::new("sh");
    both.args(["-c", "exec \"$0\" \"$@\" 2>&1"]).arg(command.get_program()).args(command.get_args());
    both.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    both
}

/// Whether progress shows that something is aggregated.
fn is_some(line: &str) -> Outcome<bool> {
    let (_, aggregated) = line.split_once("aggregated ").ok_or_else(|| line.to_owned())?;
    Ok(aggregated.split(' ').next().ok_or("no number")?.parse::<u64>()? > 0)
}

/// The pages of this server, slowly; those behind this one only through the gate.
async fn slow(at: String, behind: u64, gate: Arc<Semaphore>) -> Outcome<Front> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    Front::start(move |path| {
        let (client, url, gate) = (client.clone(), format!("{at}{path}"), gate.clone());
        let number = path.strip_prefix("/pages/").and_then(|page| page.strip_suffix(".csv")?.parse::<u64>().ok());
        async move {
            if !gate.is_closed() {
                sleep(SLOW).await;
            }
            if number.is_some_and(|number| number > behind) {
                // Each permit is for one page.
                if let Ok(permit) = gate.acquire().await {
                    permit.forget();
                }
            }
            let fetched = async { client.get(url).send().await?.bytes().await };
            Response::new(fetched.await.unwrap_or_default().into())
        }
    })
    .await
}
