//! What has been handled: a copy of a message changes nothing.
//!
//! Every broker delivers a message again now and then, and an outbox sends one again that it could not note as sent. So
//! the id of a message is noted in the transaction of its handler: either both happened, or neither. Whoever finds the
//! id there has nothing left to do.

use anyqueue::worker::{Failure, Job, OrFail};
use sqlx::{Sqlite, SqlitePool, Transaction};

use crate::database::Database;

pub(crate) const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS seen (
        id TEXT PRIMARY KEY,
        at INTEGER NOT NULL DEFAULT (unixepoch())
    ) STRICT, WITHOUT ROWID;
";

/// Begins the transaction of a handler; `None` where the message was handled before.
///
/// An error of the database is not the fault of the message, here and in handlers: it costs no attempt (`or_unavailable`).
pub(crate) async fn begin(database: &Database, job: &Job) -> Result<Option<Transaction<'static, Sqlite>>, Failure> {
    let id = job.get_id().ok_or("a message without an id cannot be told from its copies").or_permanent()?;
    let mut transaction = database.begin().await.or_unavailable()?;
    let noted = sqlx::query("INSERT INTO seen (id) VALUES (?) ON CONFLICT DO NOTHING").bind(id);
    let is_new = noted.execute(&mut *transaction).await.or_unavailable()?.rows_affected() == 1;
    Ok(is_new.then_some(transaction))
}

/// Forgets messages that come no more: a quarter of a year is longer than brokers and dead letters are left alone.
///
/// It has to be longer than a topic of Kafka keeps its messages, which come again when a group begins at its start. What has a
/// key of its own, as payments have, is safe without this; notices would come twice.
pub(crate) async fn forget(writes: &SqlitePool) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM seen WHERE at < unixepoch() - 90 * 86400").execute(writes).await?;
    Ok(())
}
