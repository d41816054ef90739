//! What cannot be handled becomes a dead letter that says why, and holds up nothing.

use std::time::Duration;

use anyqueue::{Client, Message, dead_letter};
use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::shop::Shop;
use crate::{Outcome, block_on};

const PATIENCE: Duration = Duration::from_secs(60);
const UNKNOWN: &str = "00000000-0000-7000-8000-000000000000";

pub(crate) fn dies(url: &str) -> Outcome {
    let shop = Shop::open(url)?;
    // RabbitMQ's messages get an id of the library.
    let makes_ids = url.starts_with("amqp");
    block_on(async {
        let client = anyqueue::connect(url).await?;
        let known = placed(&shop, "first").await?;
        shop.settled(1).await?;
        let id = known["id"].as_str().ok_or("no id")?;

        let request = json!({ "order": id, "customer": "ann", "amount": 7 });
        let again = format!("order {id} was decided before, by another message");
        let mut bad = unreadable(&request, makes_ids);
        bad.push((message(&request), &again));
        rejected(&client, "payments-requested", bad).await?;

        let decided = json!({ "order": UNKNOWN, "decision": "paid" });
        let (unknown, again) = [UNKNOWN, id].map(|id| format!("no order {id} waits for a decision")).into();
        let mut bad = unreadable(&decided, makes_ids);
        bad.push((message(&decided), &unknown));
        bad.push((message(&json!({ "order": id, "decision": "declined" })), &again));
        bad.push((message(&json!({ "order": id, "decision": "perhaps" })), "unknown variant `perhaps`"));
        rejected(&client, "orders-decided", bad).await?;

        let notice = json!({ "order": id, "customer": "ann", "text": "nothing" });
        rejected(&client, "notices", unreadable(&notice, makes_ids)).await?;
        client.close(Duration::from_secs(5)).await;

        // Others go on.
        let other = placed(&shop, "second").await?;
        shop.settled(2).await?;
        for order in [known, other] {
            shop.is_exact(&order).await?;
        }
        Ok(())
    })?;
    shop.close(2, 0)
}

async fn placed(shop: &Shop, item: &str) -> Outcome<Value> {
    let (status, order) = shop.place(item, &json!({ "customer": "ann", "item": item, "amount": 7 })).await?;
    assert_eq!(status, StatusCode::CREATED, "{order}");
    Ok(order)
}

fn message(body: &Value) -> Message {
    Message::new(body.to_string()).id(body.to_string())
}

/// What no handler can read, and why.
fn unreadable(whole: &Value, makes_ids: bool) -> Vec<(Message, &'static str)> {
    let mut bad = vec![
        (Message::new(vec![0xff, 0, 1]).id("1"), "expected value"),
        (Message::new("[1, 2").id("2"), "invalid type: integer"),
        (Message::new("{}").id("3"), "missing field"),
        (message(whole).content_type("text/plain"), "the content type is text/plain"),
    ];
    if !makes_ids {
        bad.push((Message::new(whole.to_string()), "without an id"));
    }
    bad
}

/// Each of these messages becomes a dead letter for its reason.
async fn rejected(client: &Client, queue: &str, bad: Vec<(Message, &str)>) -> Outcome {
    let (messages, reasons): (Vec<_>, Vec<_>) = bad.into_iter().unzip();
    client.sender(queue).await?.send_batch(messages).await?;
    let mut dead = client.receiver(&*format!("{queue}-dlq")).discard_dead_letters().await?;
    let mut told = Vec::new();
    for _ in &reasons {
        let delivery = timeout(PATIENCE, dead.receive()).await??;
        let reason = delivery.headers().get(dead_letter::REASON).and_then(|reason| reason.as_str());
        told.push(reason.ok_or("no reason")?.to_owned());
        delivery.ack_confirmed().await?;
    }
    for reason in reasons {
        let at = told.iter().position(|told| told.contains(reason));
        told.swap_remove(at.ok_or_else(|| format!("{queue}: none for '{reason}': {told:?}"))?);
    }
    dead.close(Duration::from_secs(5)).await;
    Ok(())
}
