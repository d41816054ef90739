//! Where pages come from: an index over HTTP, or a folder of files.

use std::collections::HashSet;
use std::error::Error;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use reqwest::{Client, StatusCode, Url};
use tokio::fs;

use crate::Outcome;
use crate::record::HEADER;
use crate::settings::Wrong;
use crate::state::AHEAD;

/// Bytes of a page.
const LARGEST: usize = 16 << 20;
/// Bytes of a line: what each broker takes as a message.
const LONGEST: usize = 64 << 10;
/// How often a page is asked for, and how long it waits for the second time; that doubles.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(250);
/// How long a server may say nothing.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) enum Source {
    /// A page with the address of each page, a line each.
    Index(Url, Client),
    /// Its CSV files.
    Folder(PathBuf),
}

/// Why something cannot be fetched, and whether to try again.
struct Unfetched {
    why: String,
    again: bool,
}

impl Unfetched {
    fn for_good(why: impl Display) -> Self {
        Self { why: why.to_string(), again: false }
    }
}

impl From<reqwest::Error> for Unfetched {
    fn from(error: reqwest::Error) -> Self {
        let again = error.status().is_none_or(|status| {
            status.is_server_error() || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(&status)
        });
        // What it is stands in the causes; who it is about is said anyhow.
        let error = error.without_url();
        let mut why = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            why = format!("{why}: {error}");
            cause = error.source();
        }
        Self { why, again }
    }
}

impl Source {
    pub(crate) fn new(text: &str) -> Outcome<Self> {
        if text.starts_with("http://") || text.starts_with("https://") {
            let url = text.parse().map_err(|error| Wrong::error(format!("SOURCE '{text}': {error}")))?;
            let client = Client::builder().connect_timeout(SILENCE).read_timeout(SILENCE).build()?;
            return Ok(Self::Index(url, client));
        }
        match Path::new(text).canonicalize() {
            Ok(folder) if folder.is_dir() => Ok(Self::Folder(folder)),
            _ => {
                let rule = "the URL of an index of pages, http://…, or a folder of CSV files";
                Err(Wrong::error(format!("SOURCE is {rule}, not '{text}'")))
            }
        }
    }

    /// What a state file remembers it by.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Index(url, _) => url.to_string(),
            Self::Folder(folder) => folder.display().to_string(),
        }
    }

    /// The names of all pages, each once.
    pub(crate) async fn pages(&self) -> Outcome<Vec<String>> {
        let mut names = match self {
            Self::Index(url, client) => {
                let text = patiently(|| get(client, url.clone())).await.map_err(|why| format!("{url}: {why}"))?;
                let text = String::from_utf8(text).map_err(|_| format!("{url} is no text in UTF-8"))?;
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                let names = lines.map(|line| match url.join(line) {
                    Ok(page) if ["http", "https"].contains(&page.scheme()) => Ok(page.to_string()),
                    _ => Err(format!("{url} lists '{line}', which is no address of a page")),
                });
                names.collect::<Result<Vec<_>, _>>()?
            }
            Self::Folder(folder) => {
                let mut names = Vec::new();
                for file in std::fs::read_dir(folder)? {
                    let name = file?.file_name();
                    let name = name.into_string().map_err(|name| format!("{} is no text", name.display()))?;
                    if name.ends_with(".csv") {
                        names.push(name);
                    }
                }
                names.sort();
                names
            }
        };
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        if names.is_empty() { Err(format!("{} has no pages", self.name()).into()) } else { Ok(names) }
    }

    /// The records of a page.
    pub(crate) async fn page(&self, name: &str) -> Result<Page, String> {
        let text = patiently(|| async {
            match self {
                Self::Index(_, client) => get(client, name.parse().map_err(Unfetched::for_good)?).await,
                Self::Folder(folder) => read(&folder.join(name)).await,
            }
        });
        Page::new(text.await?)
    }
}

/// The records of a page, and what tells it from another.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) records: Vec<Bytes>,
    pub(crate) checksum: i64,
}

impl Page {
    fn new(text: Vec<u8>) -> Result<Self, String> {
        let checksum = checksum(&text);
        let text = Bytes::from(text);
        let lines = text.strip_suffix(b"\n").unwrap_or(&text).split(|byte| *byte == b'\n');
        let mut lines = lines.map(|line| text.slice_ref(line.strip_suffix(b"\r").unwrap_or(line)));
        if lines.next().is_none_or(|line| line != HEADER) {
            return Err(format!("its first line is not {HEADER}"));
        }
        let records: Vec<_> = lines.take(AHEAD as usize + 1).collect();
        if records.len() > AHEAD as usize {
            return Err(format!("it has more than {AHEAD} records"));
        }
        match records.iter().position(|line| line.len() > LONGEST) {
            Some(at) => Err(format!("line {} has more than {LONGEST} bytes", at + 2)),
            None => Ok(Self { records, checksum }),
        }
    }
}

/// FNV-1a.
fn checksum(text: &[u8]) -> i64 {
    let add = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    text.iter().fold(0xcbf2_9ce4_8422_2325, add).cast_signed()
}

async fn get(client: &Client, url: Url) -> Result<Vec<u8>, Unfetched> {
    let mut answer = client.get(url).send().await?.error_for_status()?;
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        text.extend_from_slice(&chunk);
        if text.len() > LARGEST {
            return Err(too_large());
        }
    }
    whole(text)
}

async fn read(path: &Path) -> Result<Vec<u8>, Unfetched> {
    if fs::metadata(path).await.map_err(Unfetched::for_good)?.len() > LARGEST as u64 {
        return Err(too_large());
    }
    whole(fs::read(path).await.map_err(Unfetched::for_good)?)
}

fn too_large() -> Unfetched {
    Unfetched::for_good(format!("it has more than {LARGEST} bytes"))
}

/// Where nobody says how long a text is, only its last line shows that it was cut.
fn whole(text: Vec<u8>) -> Result<Vec<u8>, Unfetched> {
    if text.last().is_none_or(|last| *last == b'\n') {
        return Ok(text);
    }
    Err(Unfetched { why: "its last line has no end: it was cut".to_owned(), again: true })
}

/// Tries again what may succeed later.
async fn patiently<T, F: Future<Output = Result<T, Unfetched>>>(mut fetch: impl FnMut() -> F) -> Result<T, String> {
    let mut pause = PAUSE;
    for _ in 1..TRIES {
        match fetch().await {
            Ok(fetched) => return Ok(fetched),
            Err(unfetched) if unfetched.again => tokio::time::sleep(pause).await,
            Err(unfetched) => return Err(unfetched.why),
        }
        pause *= 2;
    }
    fetch().await.map_err(|unfetched| format!("{} ({TRIES} times)", unfetched.why))
}
