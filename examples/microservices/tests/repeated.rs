//! A message that comes again changes nothing.

use std::time::Duration;

use anyqueue::Message;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::shop::{QUEUES, SERVICES, Shop};
use crate::{Outcome, block_on};

pub(crate) fn changes_nothing(url: &str) -> Outcome {
    let shop = Shop::open(url)?;
    block_on(async {
        let first = placed(&shop, "first").await?;
        shop.settled(1).await?;
        shop.is_exact(&first).await?;
        let id = &first["id"];
        let bodies = [
            json!({ "order": id, "customer": "ann", "amount": 7 }),
            json!({ "order": id, "decision": "paid" }),
            json!({ "order": id, "customer": "ann", "text": "your order of first is paid" }),
        ];
        let client = anyqueue::connect(url).await?;
        for ((queue, body), service) in QUEUES.into_iter().zip(bodies).zip(["payments", "orders", "notifications"]) {
            let seen = "SELECT id FROM seen";
            let seen: String = sqlx::query_scalar(seen).fetch_one(&mut shop.database(service).await?).await?;
            let sender = client.sender(queue).await?;
            let copy = || Message::new(body.to_string()).id(seen.clone()).content_type("application/json");
            sender.send_batch([copy(), copy(), copy()]).await?;
        }
        client.close(Duration::from_secs(5)).await;
        let second = placed(&shop, "second").await?;
        shop.settled(2).await?;
        for order in [first, second] {
            shop.is_exact(&order).await?;
        }
        for name in SERVICES {
            assert_eq!(shop.count(name, "seen").await?, 2, "{name}");
        }
        Ok(())
    })?;
    // Which sees that the copies were taken out of their queues too, and are no dead letters.
    shop.close(2, 0)
}

async fn placed(shop: &Shop, item: &str) -> Outcome<Value> {
    let (status, order) = shop.place(item, &json!({ "customer": "ann", "item": item, "amount": 7 })).await?;
    assert_eq!(status, StatusCode::CREATED, "{order}");
    Ok(order)
}
