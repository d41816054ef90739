//! A service that was stopped catches up, and nothing is done twice.

use axum::http::StatusCode;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use sqlx::Connection;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::http::get;
use crate::shop::{Shop, until};
use crate::{Outcome, block_on, is_full};

const AT_A_TIME: usize = 16;
/// Fewer than the outbox sends at a time: it comes no further while it cannot note what it has sent.
const UNNOTED: usize = 40;

/// Orders of each step, by size of the test; the outbox takes several turns for the larger.
fn size() -> usize {
    if is_full() { 400 } else { 40 }
}

pub(crate) fn catches_up(url: &str) -> Outcome {
    let mut shop = Shop::open(url)?;
    let mut orders = payments_killed(&mut shop)?;
    orders.extend(orders_killed(&mut shop)?);
    orders.extend(orders_held(&mut shop)?);
    orders.extend(notifications_interrupted(&mut shop)?);
    let count = i64::try_from(orders.len())?;
    block_on(async {
        shop.settled(count).await?;
        stream::iter(&orders).map(|order| shop.is_exact(order)).buffer_unordered(AT_A_TIME).try_collect::<()>().await
    })?;
    shop.close(count, 0)
}

/// Payments is killed in the middle of its work; orders goes on taking orders.
fn payments_killed(shop: &mut Shop) -> Outcome<Vec<Value>> {
    let payments = shop.take("payments")?;
    let mut orders = block_on(async {
        let mut taken = place(shop, "before", size()).await?;
        until("some are decided", async || Ok(shop.count("payments", "payments").await? > 0)).await?;
        // From here on they wait.
        let mut database = shop.database("payments").await?;
        let held = database.begin_with("BEGIN IMMEDIATE").await?;
        taken.extend(place(shop, "waiting", size()).await?);
        until("all are asked about", async || Ok(shop.count("orders", "outbox").await? == 0)).await?;
        drop(payments);
        held.rollback().await?;
        let decided = shop.count("payments", "payments").await?;
        assert!((1..i64::try_from(taken.len())?).contains(&decided), "in the middle: {decided}");
        Ok(taken)
    })?;
    orders.extend(block_on(async {
        let taken = place(shop, "meanwhile", size()).await?;
        for order in &taken {
            let id = order["id"].as_str().ok_or("no id")?;
            assert_eq!(&shop.show(&format!("/orders/{id}")).await?, order, "pending");
        }
        let (status, body) = get(format!("{}/payments/{}", shop.at, Uuid::nil())).await?;
        assert_eq!((status, &*body), (StatusCode::BAD_GATEWAY, r#"{"error":"the service payments is away"}"#));
        Ok(taken)
    })?);
    shop.start("payments")?;
    block_on(all_decided(shop))?;
    Ok(orders)
}

/// Orders is killed while it takes orders. Clients that have heard nothing ask again.
fn orders_killed(shop: &mut Shop) -> Outcome<Vec<Value>> {
    let before = block_on(shop.count("orders", "orders"))?;
    let some = before + i64::try_from(size() / 2)?;
    let first = block_on(async {
        let taken = async {
            let taken = stream::iter(0..size()).map(|n| ask(shop, "killed", n)).buffered(AT_A_TIME);
            taken.try_collect::<Vec<_>>().await
        };
        let half = until("half of them are stored", async || Ok(shop.count("orders", "orders").await? > some));
        tokio::select! {
            taken = taken => taken,
            half = half => half.map(|()| Vec::new()),
        }
    });
    drop(shop.take("orders")?);
    first?;
    shop.start("orders")?;
    block_on(async {
        let taken: Vec<(StatusCode, Value)> =
            stream::iter(0..size()).map(|n| ask(shop, "killed", n)).buffered(AT_A_TIME).try_collect().await?;
        assert!(taken.iter().any(|(status, _)| *status == StatusCode::OK), "none was stored before: {taken:?}");
        assert_eq!(shop.count("orders", "orders").await?, before + i64::try_from(size())?);
        all_decided(shop).await?;
        Ok(taken.into_iter().map(|(_, order)| order).collect())
    })
}

/// Orders is killed between its commit and the send, and between the broker's confirmation and its note of that.
fn orders_held(shop: &mut Shop) -> Outcome<Vec<Value>> {
    let change = |shop: &Shop, sql: &'static str| {
        block_on(async {
            sqlx::raw_sql(sql).execute(&mut shop.database("orders").await?).await?;
            Ok(())
        })
    };
    let unsent = async |shop: &Shop, count| {
        until("so many are unsent", async || Ok(shop.count("orders", "outbox").await? == count)).await
    };
    block_on(unsent(shop, 0))?;
    // To an address that is refused: the rows stay unsent.
    change(
        shop,
        "CREATE TRIGGER held AFTER INSERT ON outbox
         BEGIN UPDATE outbox SET queue = 'held--' || queue WHERE sequence = new.sequence; END",
    )?;
    let count = i64::try_from(size())?;
    let mut orders = block_on(place(shop, "unsent", size()))?;
    change(shop, "DROP TRIGGER held")?;
    orders.extend(block_on(async {
        let taken = place(shop, "not held up", 1).await?;
        let pending = async || Ok(shop.count("orders", "orders WHERE status = 'pending'").await? == count);
        until("what comes after them is decided", pending).await?;
        unsent(shop, count).await?;
        Ok(taken)
    })?);
    drop(shop.take("orders")?);
    assert_eq!(block_on(shop.count("orders", "outbox"))?, count, "they have outlived the process");
    change(shop, "UPDATE outbox SET queue = substr(queue, 7)")?;
    shop.start("orders")?;
    block_on(async {
        all_decided(shop).await?;
        unsent(shop, 0).await
    })?;

    change(shop, "CREATE TRIGGER held BEFORE DELETE ON outbox BEGIN SELECT RAISE(ABORT, 'held'); END")?;
    orders.extend(block_on(async {
        let taken = place(shop, "unnoted", UNNOTED).await?;
        all_decided(shop).await?;
        Ok(taken)
    })?);
    drop(shop.take("orders")?);
    let unnoted = block_on(shop.count("orders", "outbox"))?;
    assert!(unnoted >= i64::try_from(UNNOTED)?, "what was sent is still there: {unnoted}");
    change(shop, "DROP TRIGGER held")?;
    shop.start("orders")?;
    block_on(unsent(shop, 0))?;
    Ok(orders)
}

/// Notifications ends in good order while there are some to come.
fn notifications_interrupted(shop: &mut Shop) -> Outcome<Vec<Value>> {
    let told = block_on(shop.count("notifications", "notices"))?;
    let notifications = shop.take("notifications")?;
    let mut orders = block_on(async {
        let ended = async {
            until("some are told of", async || Ok(shop.count("notifications", "notices").await? > told)).await?;
            spawn_blocking(|| notifications.interrupt()).await?
        };
        let (taken, ()) = tokio::try_join!(place(shop, "first", size()), ended)?;
        Ok(taken)
    })?;
    orders.extend(block_on(place(shop, "then", size()))?);
    block_on(all_decided(shop))?;
    shop.start("notifications")?;
    Ok(orders)
}

async fn all_decided(shop: &Shop) -> Outcome {
    let pending = async || Ok(shop.count("orders", "orders WHERE status = 'pending'").await? == 0);
    until("all are decided", pending).await
}

async fn place(shop: &Shop, name: &str, count: usize) -> Outcome<Vec<Value>> {
    let placed = |n| async move {
        let (status, order) = ask(shop, name, n).await?;
        assert_eq!(status, StatusCode::CREATED, "{order}");
        Outcome::Ok(order)
    };
    stream::iter(0..count).map(placed).buffered(AT_A_TIME).try_collect().await
}

async fn ask(shop: &Shop, name: &str, n: usize) -> Outcome<(StatusCode, Value)> {
    let amount = if n.is_multiple_of(3) { 100_001 } else { 100_000 };
    let asked = json!({ "customer": "ann", "item": format!("{name} {n}"), "amount": amount });
    shop.place(&format!("{name} {n}"), &asked).await
}
