//! The database of a service: one file of SQLite.

use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Sqlite, SqlitePool, Transaction};

use crate::{Outcome, inbox, outbox};

/// How long a write waits for that of another process, a backup say.
const BUSY: Duration = Duration::from_secs(10);
/// Reads at a time.
const READS: u32 = 4;

#[derive(Clone)]
pub(crate) struct Database {
    reads: SqlitePool,
    /// One connection: SQLite writes one transaction at a time, and so they wait in the order in which they came.
    writes: SqlitePool,
}

impl Database {
    /// Opens the file, and makes it and these tables where they are missing.
    pub(crate) async fn open(file: &str, tables: &'static str) -> Outcome<Self> {
        let opened = Self::opened(file, tables).await;
        opened.map_err(|error| format!("the database {file} cannot be opened: {error}").into())
    }

    async fn opened(file: &str, tables: &'static str) -> sqlx::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A message is acknowledged and a request answered after the commit, which has to outlive a power cut then.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY);
        let writes = SqlitePoolOptions::new().max_connections(1).after_release(|connection, _| {
            Box::pin(async move {
                // Waits for the end of a transaction that was dropped. One that SQLite has rolled back itself, for a full disk
                // say, would seem to go on for ever: a new connection takes the place of that one.
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        });
        let writes = writes.connect_with(options.clone()).await?;
        for tables in [inbox::TABLES, outbox::TABLES, tables] {
            sqlx::raw_sql(tables).execute(&writes).await?;
        }
        inbox::forget(&writes).await?;
        let reads = SqlitePoolOptions::new().max_connections(READS).connect_with(options).await?;
        Ok(Self { reads, writes })
    }

    /// For statements that write nothing.
    pub(crate) fn reads(&self) -> &SqlitePool {
        &self.reads
    }

    /// Begins a transaction that writes. Dropped without a commit, nothing of it happened.
    pub(crate) async fn begin(&self) -> sqlx::Result<Transaction<'static, Sqlite>> {
        self.writes.begin_with("BEGIN IMMEDIATE").await
    }

    pub(crate) async fn close(&self) {
        self.reads.close().await;
        self.writes.close().await;
    }
}
