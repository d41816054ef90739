//! Payments: decides each order once.

use anyqueue::worker::{Failure, Job, OrFail};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row};

use crate::messages::{Decision, ORDERS_DECIDED, OrderDecided, PAYMENTS_REQUESTED, PaymentRequested};
use crate::rest::{Wrong, id};
use crate::service::{self, Own, Service};
use crate::{Outcome, inbox, outbox};

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS payments (
        for_order TEXT PRIMARY KEY,
        customer TEXT NOT NULL,
        amount INTEGER NOT NULL,
        decision TEXT NOT NULL
    ) STRICT;
";

/// What is more is declined, in cents.
const MOST: i64 = 100_000;

pub(crate) async fn run() -> Outcome {
    let routes = Router::new().route("/payments/{order}", get(show));
    let own =
        Own { listen: "127.0.0.1:8082", database: "payments.db", tables: TABLES, routes, queue: PAYMENTS_REQUESTED };
    service::run(own, decide).await
}

#[derive(Serialize)]
struct Payment {
    order: String,
    customer: String,
    amount: i64,
    /// `paid` or `declined`.
    decision: String,
}

impl FromRow<'_, SqliteRow> for Payment {
    fn from_row(row: &SqliteRow) -> sqlx::Result<Self> {
        Ok(Self {
            order: row.try_get("for_order")?,
            customer: row.try_get("customer")?,
            amount: row.try_get("amount")?,
            decision: row.try_get("decision")?,
        })
    }
}

async fn show(
    State(service): State<Service>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Payment>, Wrong> {
    let payment = sqlx::query_as("SELECT * FROM payments WHERE for_order = ?").bind(id(path)?);
    let payment = payment.fetch_optional(service.database.reads()).await?;
    payment.map(Json).ok_or_else(|| Wrong(StatusCode::NOT_FOUND, "there is no payment for such an order".to_owned()))
}

async fn decide(service: Service, request: PaymentRequested, job: Job) -> Result<(), Failure> {
    let Some(mut transaction) = inbox::begin(&service.database, &job).await? else { return Ok(()) };
    let PaymentRequested { order, customer, amount } = request;
    let decision = if amount > MOST { Decision::Declined } else { Decision::Paid };
    let payment = sqlx::query(
        "INSERT INTO payments (for_order, customer, amount, decision) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
    )
    .bind(&order)
    .bind(customer)
    .bind(amount)
    .bind(decision.as_str());
    if payment.execute(&mut *transaction).await.or_unavailable()?.rows_affected() == 0 {
        return Err(Failure::permanent(format!("order {order} was decided before, by another message")));
    }
    let decided = OrderDecided { order: order.clone(), decision };
    outbox::put(&mut transaction, ORDERS_DECIDED, &order, &decided).await.or_unavailable()?;
    service.outbox.commit(transaction).await.or_unavailable()
}
