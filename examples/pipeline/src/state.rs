//! What is done so far, in one SQLite file that all processes share.

use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::error::DatabaseError;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

use crate::Outcome;
use crate::settings::Wrong;
use crate::source::Page;
use crate::totals::Seen;

/// Records that are queued and not aggregated, and those of a page: what a queue has to hold, and what a restart may repeat.
pub(crate) const AHEAD: u32 = 65_536;
/// How often it is looked whether there are less.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// How long a process waits for the others that write.
const PATIENCE: Duration = Duration::from_secs(60);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS job (one INTEGER PRIMARY KEY CHECK (one = 1), job TEXT NOT NULL, source TEXT) STRICT;
    INSERT OR IGNORE INTO job VALUES (1, lower(hex(randomblob(6))), NULL);
    -- A bit of `seen` for each record. What was never fetched has neither; `sent` is what this run has queued.
    CREATE TABLE IF NOT EXISTS pages (
        page INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, records INTEGER, checksum INTEGER,
        missing INTEGER, sent INTEGER NOT NULL DEFAULT 0, seen BLOB
    ) STRICT;
    CREATE INDEX IF NOT EXISTS sizes ON pages (records);
    CREATE INDEX IF NOT EXISTS under_way ON pages (missing) WHERE sent AND missing > 0;
    CREATE TABLE IF NOT EXISTS totals (
        station TEXT PRIMARY KEY, records INTEGER NOT NULL, sum INTEGER NOT NULL,
        lowest INTEGER NOT NULL, highest INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS bad (
        page INTEGER NOT NULL REFERENCES pages, record INTEGER NOT NULL, why TEXT NOT NULL, PRIMARY KEY (page, record)
    ) STRICT, WITHOUT ROWID;
    -- What all workers did in each second of a run.
    CREATE TABLE IF NOT EXISTS seconds (second INTEGER PRIMARY KEY, records INTEGER NOT NULL) STRICT;
";

#[derive(Debug)]
pub(crate) struct State {
    /// In a process one transaction waits for the other here, and not with SQLite's naps.
    writer: Mutex<SqliteConnection>,
    options: SqliteConnectOptions,
    reader: Mutex<SqliteConnection>,
    /// Held by the page that waits for room.
    turn: Mutex<()>,
    pub(crate) job: String,
}

/// A page that is to be fetched.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) page: i64,
    pub(crate) name: String,
}

/// How far everything is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) pages: u64,
    pub(crate) fetched: u64,
    /// On the pages that were fetched.
    pub(crate) records: u64,
    /// Aggregated, or known to be bad.
    pub(crate) done: u64,
}

impl State {
    /// Makes the file if need be.
    pub(crate) async fn open(path: &Path) -> Outcome<Self> {
        Self::tried(path, true).await.map_err(|error| format!("STATE '{}': {error}", path.display()).into())
    }

    /// That of a run that has begun.
    pub(crate) async fn of_run(path: &Path) -> Outcome<Self> {
        if !path.exists() {
            let path = path.display();
            return Err(Wrong::error(format!("STATE '{path}' is not there: work takes that of a run that has begun")));
        }
        Self::tried(path, false).await.map_err(|error| format!("STATE '{}': {error}", path.display()).into())
    }

    async fn tried(path: &Path, is_new: bool) -> sqlx::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(is_new)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit that a power cut takes back is fetched again: its page is not complete then.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(PATIENCE);
        let mut writer = first(&options).await?;
        if is_new {
            let mut tables = writer.begin_with("BEGIN IMMEDIATE").await?;
            sqlx::raw_sql(TABLES).execute(&mut *tables).await?;
            tables.commit().await?;
        }
        let job = sqlx::query_scalar("SELECT job FROM job").fetch_one(&mut writer).await?;
        let reader = Mutex::new(options.connect().await?);
        Ok(Self { writer: Mutex::new(writer), options, reader, turn: Mutex::new(()), job })
    }

    /// Begins a run: which pages are not complete.
    pub(crate) async fn begin(&self, path: &Path, source: &str, names: &[String]) -> Outcome<Vec<Open>> {
        let mut writer = self.writer().await?;
        let mut all = writer.begin_with("BEGIN IMMEDIATE").await?;
        // Where nothing is known yet, anything may be the source.
        sqlx::query("DELETE FROM pages WHERE (SELECT max(records) FROM pages) IS NULL").execute(&mut *all).await?;
        let before = "SELECT source FROM job WHERE EXISTS (SELECT 1 FROM pages)";
        let before: Option<String> = sqlx::query_scalar(before).fetch_optional(&mut *all).await?;
        if let Some(before) = before.filter(|before| before != source) {
            let path = path.display();
            return Err(Wrong::error(format!(
                "STATE '{path}' is that of '{before}', not of '{source}': take another one"
            )));
        }
        sqlx::query("UPDATE job SET source = ?").bind(source).execute(&mut *all).await?;
        // Those that stay 0 are listed no more.
        sqlx::query("UPDATE pages SET sent = 0").execute(&mut *all).await?;
        for name in names {
            let listed = "INSERT INTO pages (name, sent) VALUES (?, 1) ON CONFLICT DO UPDATE SET sent = 1";
            sqlx::query(listed).bind(name).execute(&mut *all).await?;
        }
        let gone = "SELECT name FROM pages WHERE NOT sent LIMIT 1";
        if let Some(gone) = sqlx::query_scalar::<_, String>(gone).fetch_optional(&mut *all).await? {
            return Err(format!("'{source}' has changed, it has no page '{gone}' any more: take another STATE").into());
        }
        sqlx::query("UPDATE pages SET sent = 0").execute(&mut *all).await?;
        // Those that were begun are in the queue perhaps: they go first.
        let open = "SELECT page, name FROM pages WHERE missing IS NULL OR missing > 0 ORDER BY missing IS NULL, page";
        let open: Vec<(i64, String)> = sqlx::query_as(open).fetch_all(&mut *all).await?;
        all.commit().await?;
        Ok(open.into_iter().map(|(page, name)| Open { page, name }).collect())
    }

    /// Waits until the queue has room for the records of a page, and notes them; which were seen before.
    pub(crate) async fn expect(&self, page: i64, fetched: &Page) -> Outcome<Seen> {
        let records = u32::try_from(fetched.records.len())?;
        let _turn = self.turn.lock().await;
        while self.missing().await? + i64::from(records) > i64::from(AHEAD) {
            sleep(LOOK).await;
        }
        let mut writer = self.writer().await?;
        let mut noted = writer.begin_with("BEGIN IMMEDIATE").await?;
        let known = "SELECT records, checksum, seen FROM pages WHERE page = ? AND records IS NOT NULL";
        let known = sqlx::query_as(known).bind(page).fetch_optional(&mut *noted).await?;
        let seen = match known {
            None => Seen(vec![0; records.div_ceil(8) as usize]),
            Some((before, checksum, seen)) if (before, checksum) == (records, fetched.checksum) => Seen(seen),
            Some((before, ..)) => {
                let how = if before == records { "others" } else { &format!("{records}") };
                let why =
                    format!("it had {before} records and has {how} now, the source has changed: take another STATE");
                return Err(why.into());
            }
        };
        let note = "UPDATE pages SET records = ?1, checksum = ?2, missing = coalesce(missing, ?1),
                    seen = coalesce(seen, ?3), sent = 1 WHERE page = ?4";
        let note = sqlx::query(note).bind(records).bind(fetched.checksum).bind(&seen.0).bind(page);
        note.execute(&mut *noted).await?;
        noted.commit().await?;
        Ok(seen)
    }

    /// A page that could not be sent is not waited for.
    pub(crate) async fn give_up(&self, page: i64) -> sqlx::Result<()> {
        let mut writer = self.writer().await?;
        sqlx::query("UPDATE pages SET sent = 0 WHERE page = ?").bind(page).execute(&mut *writer).await.map(drop)
    }

    pub(crate) async fn standing(&self) -> Outcome<Standing> {
        let standing = "SELECT count(*), count(records), coalesce(sum(records), 0),
                        (SELECT coalesce(sum(records), 0) FROM seconds) FROM pages";
        let all: (i64, i64, i64, i64) = sqlx::query_as(standing).fetch_one(&mut *self.reader().await).await?;
        let (pages, fetched, records, done) = all;
        Ok(Standing {
            pages: pages.try_into()?,
            fetched: fetched.try_into()?,
            records: records.try_into()?,
            done: done.try_into()?,
        })
    }

    /// Records that are queued and not aggregated.
    pub(crate) async fn missing(&self) -> sqlx::Result<i64> {
        let missing = "SELECT coalesce(sum(missing), 0) FROM pages WHERE sent AND missing > 0";
        sqlx::query_scalar(missing).fetch_one(&mut *self.reader().await).await
    }

    /// Begins a second, in which there may be nothing to do.
    pub(crate) async fn tick(&self) -> sqlx::Result<()> {
        let tick = "INSERT OR IGNORE INTO seconds VALUES (unixepoch(), 0)";
        sqlx::query(tick).execute(&mut *self.writer().await?).await.map(drop)
    }

    pub(crate) async fn reader(&self) -> MutexGuard<'_, SqliteConnection> {
        self.reader.lock().await
    }

    pub(crate) async fn writer(&self) -> sqlx::Result<MutexGuard<'_, SqliteConnection>> {
        let mut writer = self.writer.lock().await;
        // SQLite itself rolls back where the disk is full. sqlx does not see that, and this connection would begin no other.
        if writer.is_in_transaction() {
            *writer = self.options.connect().await?;
        }
        Ok(writer)
    }
}

/// Whoever makes the file has it alone for a moment, for which SQLite waits for nobody.
async fn first(options: &SqliteConnectOptions) -> sqlx::Result<SqliteConnection> {
    let begun = Instant::now();
    loop {
        match options.connect().await {
            Err(sqlx::Error::Database(error)) if is_busy(&*error) && begun.elapsed() < PATIENCE => sleep(LOOK).await,
            connected => return connected,
        }
    }
}

/// Whether SQLite says BUSY, of whichever kind.
fn is_busy(error: &dyn DatabaseError) -> bool {
    error.code().and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| code & 0xff == 5)
}
