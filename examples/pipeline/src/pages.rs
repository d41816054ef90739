//! Made-up pages, so that there is something to fetch.

use std::fmt::Write as _;
use std::path::Path;

use anyqueue::worker::signal;
use axum::Router;
use axum::extract::{self, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;

use crate::record::HEADER;
use crate::settings::{Wrong, setting};
use crate::state::AHEAD;
use crate::{Outcome, USAGE};

const RECORDS: u64 = 1_000_000;
const PER_PAGE: u64 = 1000;
const MOST_RECORDS: u64 = 1_000_000_000;
const MOST_PER_PAGE: u64 = AHEAD as u64;
/// The index lists all.
const MOST_PAGES: u64 = 1_000_000;
const STATIONS: u64 = 100;

/// How many records there are, and how many on a page.
#[derive(Debug, Clone, Copy)]
struct Pages {
    records: u64,
    per_page: u64,
}

/// Serves pages, or writes them into a folder.
pub(crate) async fn pages(arguments: &[&str]) -> Outcome {
    let (numbers, folder) = match arguments {
        [numbers @ .., "--to", folder] => (numbers, Some(folder)),
        numbers => (numbers, None),
    };
    let (records, per_page) = match numbers {
        [] => (RECORDS, PER_PAGE),
        [records] => (number("RECORDS", records, MOST_RECORDS)?, PER_PAGE),
        [records, per_page] => {
            (number("RECORDS", records, MOST_RECORDS)?, number("PER_PAGE", per_page, MOST_PER_PAGE)?)
        }
        _ => return Err(Wrong::error(USAGE)),
    };
    let pages = Pages { records, per_page };
    if pages.count() > MOST_PAGES {
        return Err(Wrong::error(format!("{records} records are more than {MOST_PAGES} pages of {per_page}; {USAGE}")));
    }
    match folder {
        Some(folder) => pages.write(Path::new(folder)).map_err(|error| format!("{folder}: {error}").into()),
        None => pages.serve().await,
    }
}

fn number(name: &str, text: &str, most: u64) -> Outcome<u64> {
    let number = text.parse().ok().filter(|number| (1..=most).contains(number));
    number.ok_or_else(|| Wrong::error(format!("{name} is a number from 1 to {most}, not '{text}'; {USAGE}")))
}

impl Pages {
    fn count(self) -> u64 {
        self.records.div_ceil(self.per_page)
    }

    fn text(self, page: u64) -> String {
        let first = (page - 1) * self.per_page;
        let last = self.records.min(first + self.per_page);
        let mut text = format!("{HEADER}\n");
        for record in first..last {
            let chance = mixed(record);
            let millidegrees = ((chance >> 32) % 60_000).cast_signed() - 20_000;
            let _ = writeln!(text, "station-{:02},{millidegrees}", chance % STATIONS);
        }
        text
    }

    fn write(self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        (1..=self.count()).try_for_each(|page| std::fs::write(folder.join(format!("{page}.csv")), self.text(page)))
    }

    async fn serve(self) -> Outcome {
        let listen = setting("LISTEN", "127.0.0.1:8080")?;
        let listener = TcpListener::bind(&listen).await.map_err(|error| format!("LISTEN '{listen}': {error}"))?;
        println!("http://{}", listener.local_addr()?);
        let routes = Router::new().route("/", get(index)).route("/pages/{name}", get(page)).with_state(self);
        tokio::select! {
            served = axum::serve(listener, routes) => served?,
            () = signal() => {}
        }
        Ok(())
    }
}

/// Numbers that look like chance: SplitMix64.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The path of each page, a line each.
async fn index(State(pages): State<Pages>) -> String {
    (1..=pages.count()).fold(String::new(), |mut paths, page| {
        let _ = writeln!(paths, "/pages/{page}.csv");
        paths
    })
}

async fn page(State(pages): State<Pages>, extract::Path(name): extract::Path<String>) -> Response {
    let number = name.strip_suffix(".csv").and_then(|number| number.parse().ok());
    let is_there = |&page: &u64| (1..=pages.count()).contains(&page) && format!("{page}.csv") == name;
    match number.filter(is_there) {
        Some(page) => ([(header::CONTENT_TYPE, "text/csv; charset=utf-8")], pages.text(page)).into_response(),
        None => {
            let why = format!("there are pages from /pages/1.csv to /pages/{}.csv\n", pages.count());
            (StatusCode::NOT_FOUND, why).into_response()
        }
    }
}
