//! Notifications: keeps what customers were told. It would send them too, by mail say.

use anyqueue::worker::{Failure, Job, OrFail};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, QueryBuilder, Row};

use crate::messages::{NOTICES, Notice};
use crate::rest::{Wrong, checked_id, limit};
use crate::service::{self, Own, Service};
use crate::{Outcome, inbox};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS notices (
        id INTEGER PRIMARY KEY,
        for_order TEXT NOT NULL,
        customer TEXT NOT NULL,
        text TEXT NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS notices_by_order ON notices (for_order);
    CREATE INDEX IF NOT EXISTS notices_by_customer ON notices (customer);
";

pub(crate) async fn run() -> Outcome {
    let routes = Router::new().route("/notifications", get(list));
    let own = Own { listen: "127.0.0.1:8083", database: "notifications.db", tables: TABLES, routes, queue: NOTICES };
    service::run(own, store).await
}

#[derive(Serialize)]
struct Told {
    order: String,
    customer: String,
    text: String,
}

impl FromRow<'_, SqliteRow> for Told {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self { order: row.try_get("for_order")?, customer: row.try_get("customer")?, text: row.try_get("text")? })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    customer: Option<String>,
    order: Option<String>,
    limit: Option<u32>,
}

/// The newest, of one customer, for one order, or all.
async fn list(
    State(service): State<Service>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Vec<Told>>, Wrong> {
    let Query(which) = which?;
    let order = which.order.as_deref().map(checked_id).transpose()?;
    let mut told = QueryBuilder::new("SELECT * FROM notices WHERE true");
    if let Some(customer) = which.customer {
        told.push(" AND customer = ").push_bind(customer);
    }
    if let Some(order) = order {
        told.push(" AND for_order = ").push_bind(order);
    }
    told.push(" ORDER BY id DESC LIMIT ").push_bind(limit(which.limit)?);
    Ok(Json(told.build_query_as().fetch_all(service.database.reads()).await?))
}

async fn store(service: Service, notice: Notice, job: Job) -> Result<(), Failure> {
    let Some(mut transaction) = inbox::begin(&service.database, &job).await? else { return Ok(()) };
    sqlx::query("INSERT INTO notices (for_order, customer, text) VALUES (?, ?, ?)")
        .bind(notice.order)
        .bind(notice.customer)
        .bind(notice.text)
        .execute(&mut *transaction)
        .await
        .or_unavailable()?;
    transaction.commit().await.or_unavailable()
}
