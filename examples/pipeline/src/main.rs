//! Big data: fetches many pages at a time, queues their records, and aggregates them with as many workers as there are. Killed and
//! started again it ends with exactly the same result.
//!
//! ```sh
//! cargo run --release -p pipeline -- pages &                      # a million made-up records, at http://127.0.0.1:8080
//! cargo run --release -p pipeline -- run http://127.0.0.1:8080    # or a folder of CSV files
//! cargo run --release -p pipeline -- work                         # more workers with the same STATE
//! ```
//! `run` writes `result.csv`, `bad.csv` and `throughput.svg` into the folder `OUT` (`.`). `QUEUE_URL` says where records wait
//! (`memory://`; `work` needs a broker that other processes reach), `STATE` is the SQLite file that all processes share
//! (`pipeline.db`), `QUEUE` what the queue's name begins with (`pipeline`; each state file has its own), `WORKERS` how many
//! batches a process works on at a time (one for each core).
//! `pages` listens at `LISTEN` (`127.0.0.1:8080`); `pages 5000 100 --to FOLDER` writes files.

mod output;
mod pages;
mod plot;
mod progress;
mod record;
mod run;
mod settings;
mod source;
mod state;
mod totals;
mod work;

use std::process::ExitCode;

use crate::settings::{Settings, Wrong};

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "usage: pipeline pages [RECORDS [PER_PAGE]] [--to FOLDER] | run SOURCE | work";

#[tokio::main]
async fn main() -> ExitCode {
    match start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(if error.is::<Wrong>() { 2 } else { 1 })
        }
    }
}

async fn start() -> Outcome {
    let arguments = settings::arguments()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["pages", ref rest @ ..] => pages::pages(rest).await,
        ["run", source] => run::run(source, &Settings::read()?).await,
        ["work"] => work::work(&Settings::read()?).await,
        _ => Err(Wrong::error(USAGE)),
    }
}
