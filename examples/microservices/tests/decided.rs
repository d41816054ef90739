//! Every order is decided once.

use axum::http::StatusCode;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};

use crate::shop::Shop;
use crate::{Outcome, block_on, is_full};

/// Orders, by size of the test.
fn orders() -> usize {
    if is_full() { 2000 } else { 40 }
}

const AT_A_TIME: usize = 64;

pub(crate) fn all(url: &str) -> Outcome {
    let shop = Shop::open(url)?;
    let count = block_on(async {
        let orders: Vec<Value> =
            stream::iter(0..orders()).map(|n| place(&shop, n)).buffered(AT_A_TIME).try_collect().await?;
        shop.settled(i64::try_from(orders.len())?).await?;
        stream::iter(&orders).map(|order| shop.is_exact(order)).buffer_unordered(AT_A_TIME).try_collect::<()>().await?;

        // The newest first.
        let newest = orders.iter().filter_map(|order| order["id"].as_str()).max();
        let listed = shop.show("/orders?limit=2").await?;
        assert_eq!((listed.as_array().map(Vec::len), listed[0]["id"].as_str()), (Some(2), newest));
        let of_one = shop.show("/orders?customer=customer-3&limit=1000").await?;
        assert_eq!(of_one.as_array().map(Vec::len), Some(orders.len() / 10));
        let told = shop.show("/notifications?customer=customer-3&limit=1").await?;
        assert_eq!((told.as_array().map(Vec::len), told[0]["customer"].as_str()), (Some(1), Some("customer-3")));
        Ok(orders.len())
    })?;
    shop.close(i64::try_from(count)?, 0)
}

/// Places an order of which every third is too expensive, twice: as by a client that has heard nothing at first.
async fn place(shop: &Shop, n: usize) -> Outcome<Value> {
    let amount = if n.is_multiple_of(3) { 100_001 } else { 100_000 };
    let asked = json!({ "customer": format!("customer-{}", n % 10), "item": format!("item {n}"), "amount": amount });
    let (status, order) = shop.place(&format!("key {n}"), &asked).await?;
    assert_eq!(status, StatusCode::CREATED, "{order}");
    assert_eq!(order["status"], "pending", "{order}");
    for (name, value) in asked.as_object().into_iter().flatten() {
        assert_eq!(&order[name], value);
    }
    let (status, again) = shop.place(&format!("key {n}"), &asked).await?;
    assert_eq!((status, &again["id"]), (StatusCode::OK, &order["id"]));
    Ok(order)
}
