//! The transactional outbox: a message is a row, written in the transaction that it tells of, and sent after the commit.
//!
//! Without one, a service that is killed between its commit and the send has a change that nobody hears of; one that sends
//! first tells of a change that may not happen. A row is deleted when the broker has confirmed its message. What was
//! confirmed and not deleted in time is sent again with the same id, which the [inbox](crate::inbox) of the receiver knows.
//!
//! A reusable outbox is to come to the library, and takes the place of this module: what services use of it is [`put`] and
//! [`Outbox::commit`], and what runs them uses [`Outbox::run`] and [`Outbox::send_all`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyqueue::{Client, Message, Sender, Verdict};
use serde::Serialize;
use sqlx::{Sqlite, SqliteConnection, Transaction};
use tokio::sync::{Mutex, Notify};
use tokio::time::timeout;
use uuid::Uuid;

use crate::Outcome;
use crate::database::Database;

pub(crate) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS outbox (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL,
        queue TEXT NOT NULL,
        key TEXT NOT NULL,
        body TEXT NOT NULL
    ) STRICT;
";

/// Rows that are sent at a time.
const PAGE: u32 = 100;
/// How long one send is tried.
const DEADLINE: Duration = Duration::from_secs(10);
/// A commit whose request was given up by its client wakes nobody: its row is found by then.
const IDLE: Duration = Duration::from_secs(5);
/// The pause after a failure, which doubles up to the longest.
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Puts a message into the outbox of a transaction. Messages of one key stay in order where the broker keeps one.
pub(crate) async fn put(
    transaction: &mut SqliteConnection,
    queue: &str,
    key: &str,
    message: &impl Serialize,
) -> sqlx::Result<()> {
    let body = serde_json::to_string(message).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query("INSERT INTO outbox (id, queue, key, body) VALUES (?, ?, ?, ?)")
        .bind(Uuid::now_v7().to_string())
        .bind(queue)
        .bind(key)
        .bind(body)
        .execute(transaction)
        .await?;
    Ok(())
}

type Row = (i64, String, String, String, String);
type Senders = HashMap<String, Sender>;

#[derive(Clone)]
pub(crate) struct Outbox {
    client: Client,
    database: Database,
    committed: Arc<Notify>,
    /// Held while rows are sent, so that each is sent by one at a time.
    senders: Arc<Mutex<Senders>>,
}

impl Outbox {
    pub(crate) fn new(client: Client, database: Database) -> Self {
        Self { client, database, committed: Arc::default(), senders: Arc::default() }
    }

    /// Commits a transaction, and sends what it put into the outbox.
    pub(crate) async fn commit(&self, transaction: Transaction<'_, Sqlite>) -> sqlx::Result<()> {
        transaction.commit().await?;
        self.committed.notify_one();
        Ok(())
    }

    /// Sends what is there, and what comes, until it is to end.
    pub(crate) async fn run(self, end: impl Future<Output = ()>) -> Outcome {
        let work = async {
            let (mut pause, mut told) = (PAUSE, String::new());
            loop {
                match self.send_all().await {
                    Ok(None) => {
                        pause = PAUSE;
                        // Both mean that it is time to look.
                        let _ = timeout(IDLE, self.committed.notified()).await;
                    }
                    Ok(Some(error)) => {
                        let error = error.to_string();
                        if error != told {
                            eprintln!("the outbox keeps what is refused: {error}");
                            told = error;
                        }
                        // The others do not wait for it.
                        let _ = timeout(pause, self.committed.notified()).await;
                        pause = LONGEST_PAUSE.min(2 * pause);
                    }
                    Err(error) => {
                        eprintln!("the outbox waits {pause:?}: {error}");
                        tokio::time::sleep(pause).await;
                        pause = LONGEST_PAUSE.min(2 * pause);
                    }
                }
            }
        };
        tokio::select! {
            () = work => {}
            // What is cut short here is sent again, with the same id.
            () = end => {}
        }
        Ok(())
    }

    /// Sends all rows, oldest first, and deletes those that the broker has. One that it refuses holds up no others; the last
    /// refusal is what this answers.
    pub(crate) async fn send_all(&self) -> Outcome<Option<anyqueue::Error>> {
        let mut senders = self.senders.lock().await;
        let (mut last, mut refused) = (0, None);
        loop {
            let page = "SELECT sequence, id, queue, key, body FROM outbox WHERE sequence > ? ORDER BY sequence LIMIT ?";
            let rows: Vec<Row> = sqlx::query_as(page).bind(last).bind(PAGE).fetch_all(self.database.reads()).await?;
            match rows.last() {
                Some(row) => last = row.0,
                None => return Ok(refused),
            }
            let mut verdicts = Vec::new();
            for row in rows {
                let sequence = row.0;
                let verdict = self.submit(&mut senders, row).await;
                let is_away = verdict.as_ref().is_err_and(anyqueue::Error::is_retryable);
                verdicts.push((sequence, verdict));
                if is_away {
                    break;
                }
            }
            let (mut confirmed, mut away) = (Vec::new(), None);
            for (sequence, verdict) in verdicts {
                let receipt = match verdict {
                    Ok(verdict) => verdict.await,
                    Err(error) => Err(error),
                };
                match receipt {
                    Ok(_) => confirmed.push(sequence),
                    Err(error) if error.is_retryable() => away = Some(error),
                    Err(error) => refused = Some(error),
                }
            }
            self.delete(&confirmed).await?;
            if let Some(error) = away {
                return Err(error.into());
            }
        }
    }

    /// Hands a row to the broker; the verdict comes later.
    async fn submit(&self, senders: &mut Senders, (_, id, queue, key, body): Row) -> anyqueue::Result<Verdict> {
        let message = Message::new(body).id(id).key(key).content_type("application/json");
        if let Some(sender) = senders.get(&queue) {
            return sender.submit(message).await;
        }
        let sender = self.client.sender(&*queue).deadline(DEADLINE).await?;
        let verdict = sender.submit(message).await;
        senders.insert(queue, sender);
        verdict
    }

    async fn delete(&self, confirmed: &[i64]) -> sqlx::Result<()> {
        if confirmed.is_empty() {
            return Ok(());
        }
        let mut transaction = self.database.begin().await?;
        for sequence in confirmed {
            let row = sqlx::query("DELETE FROM outbox WHERE sequence = ?").bind(sequence);
            row.execute(&mut *transaction).await?;
        }
        transaction.commit().await
    }
}
