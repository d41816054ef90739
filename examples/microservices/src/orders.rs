//! Orders: takes them, has them paid, and has their customers told.

use anyqueue::worker::{Failure, Job, OrFail};
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, QueryBuilder, Row};
use uuid::Uuid;

use crate::messages::{NOTICES, Notice, ORDERS_DECIDED, OrderDecided, PAYMENTS_REQUESTED, PaymentRequested};
use crate::rest::{Wrong, id, is_text, limit};
use crate::service::{self, Own, Service};
use crate::{Outcome, inbox, outbox};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id TEXT PRIMARY KEY,
        customer TEXT NOT NULL,
        item TEXT NOT NULL,
        amount INTEGER NOT NULL,
        status TEXT NOT NULL DEFAULT 'pending',
        idempotency_key TEXT UNIQUE
    ) STRICT;
    CREATE INDEX IF NOT EXISTS orders_by_customer ON orders (customer, id);
";

/// The highest amount of an order, in cents.
const MOST: i64 = 100_000_000;

pub(crate) async fn run() -> Outcome {
    let routes = Router::new().route("/orders", post(place).get(list)).route("/orders/{id}", get(show));
    let own = Own { listen: "127.0.0.1:8081", database: "orders.db", tables: TABLES, routes, queue: ORDERS_DECIDED };
    service::run(own, decided).await
}

#[derive(Serialize)]
struct Order {
    id: String,
    customer: String,
    item: String,
    amount: i64,
    /// `pending`, `paid` or `declined`.
    status: String,
}

impl FromRow<'_, SqliteRow> for Order {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            customer: row.try_get("customer")?,
            item: row.try_get("item")?,
            amount: row.try_get("amount")?,
            status: row.try_get("status")?,
        })
    }
}

/// What a customer asks for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    customer: String,
    item: String,
    amount: i64,
}

impl Asked {
    fn check(&self) -> Result<(), Wrong> {
        let wrong = |why: &str| Err(Wrong(StatusCode::UNPROCESSABLE_ENTITY, why.to_owned()));
        match self {
            _ if !is_text(&self.customer) => wrong("customer is a text of 1 to 100 characters"),
            _ if !is_text(&self.item) => wrong("item is a text of 1 to 100 characters"),
            _ if !(1..=MOST).contains(&self.amount) => wrong("amount is in cents, from 1 to 100000000"),
            _ => Ok(()),
        }
    }
}

/// Takes an order. With an `Idempotency-Key` a client may ask again when it has heard nothing: it gets the same order.
async fn place(
    State(service): State<Service>,
    headers: HeaderMap,
    body: Result<Json<Asked>, JsonRejection>,
) -> Result<Response, Wrong> {
    let key = idempotency_key(&headers)?;
    let Json(asked) = body?;
    asked.check()?;
    let id = Uuid::now_v7().to_string();
    let mut transaction = service.database.begin().await?;
    let stored: Option<Order> = sqlx::query_as(
        "INSERT INTO orders (id, customer, item, amount, idempotency_key) VALUES (?, ?, ?, ?, ?)
         ON CONFLICT (idempotency_key) DO NOTHING RETURNING *",
    )
    .bind(&id)
    .bind(&asked.customer)
    .bind(&asked.item)
    .bind(asked.amount)
    .bind(key)
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(order) = stored else {
        let known = sqlx::query_as("SELECT * FROM orders WHERE idempotency_key = ?").bind(key);
        let order: Order = known.fetch_one(&mut *transaction).await?;
        if (&order.customer, &order.item, order.amount) != (&asked.customer, &asked.item, asked.amount) {
            let why = "this Idempotency-Key is that of another order";
            return Err(Wrong(StatusCode::UNPROCESSABLE_ENTITY, why.to_owned()));
        }
        return Ok((StatusCode::OK, Json(order)).into_response());
    };
    let request = PaymentRequested { order: id.clone(), customer: asked.customer, amount: asked.amount };
    outbox::put(&mut transaction, PAYMENTS_REQUESTED, &id, &request).await?;
    service.outbox.commit(transaction).await?;
    Ok((StatusCode::CREATED, [(header::LOCATION, format!("/orders/{id}"))], Json(order)).into_response())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Wrong> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let (key, other) = (keys.next(), keys.next());
    let Some(key) = key else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| is_text(key) && other.is_none());
    let wrong = || Wrong(StatusCode::BAD_REQUEST, "Idempotency-Key is one text of 1 to 100 characters".to_owned());
    key.map(Some).ok_or_else(wrong)
}

async fn show(State(service): State<Service>, path: Result<Path<String>, PathRejection>) -> Result<Json<Order>, Wrong> {
    let order = sqlx::query_as("SELECT * FROM orders WHERE id = ?").bind(id(path)?);
    let order = order.fetch_optional(service.database.reads()).await?;
    order.map(Json).ok_or_else(|| Wrong(StatusCode::NOT_FOUND, "there is no such order".to_owned()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    customer: Option<String>,
    limit: Option<u32>,
}

/// The newest orders, of one customer or of all.
async fn list(
    State(service): State<Service>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Vec<Order>>, Wrong> {
    let Query(which) = which?;
    // The ids of orders follow the time.
    let mut orders = QueryBuilder::new("SELECT * FROM orders");
    if let Some(customer) = which.customer {
        orders.push(" WHERE customer = ").push_bind(customer);
    }
    orders.push(" ORDER BY id DESC LIMIT ").push_bind(limit(which.limit)?);
    Ok(Json(orders.build_query_as().fetch_all(service.database.reads()).await?))
}

/// Notes how an order was decided. Orders are stored before they are asked about, so that one which is not known will not be.
async fn decided(service: Service, decided: OrderDecided, job: Job) -> Result<(), Failure> {
    let Some(mut transaction) = inbox::begin(&service.database, &job).await? else { return Ok(()) };
    let status = decided.decision.as_str();
    let order = sqlx::query_as("UPDATE orders SET status = ? WHERE id = ? AND status = 'pending' RETURNING *");
    let order = order.bind(status).bind(&decided.order).fetch_optional(&mut *transaction).await.or_unavailable()?;
    let Some(Order { id, customer, item, .. }) = order else {
        return Err(Failure::permanent(format!("no order {} waits for a decision", decided.order)));
    };
    let notice = Notice { text: format!("your order of {item} is {status}"), order: id, customer };
    outbox::put(&mut transaction, NOTICES, &notice.order, &notice).await.or_unavailable()?;
    service.outbox.commit(transaction).await.or_unavailable()
}
