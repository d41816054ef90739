//! Sends, receives and answers: an ack, a retry, a dead letter.
//!
//! `cargo run --example quickstart` runs on the embedded memory broker. With all features, `QUEUE_URL` chooses another:
//! `QUEUE_URL=amqp://guest:guest@localhost:5672 cargo run --example quickstart --features full`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyqueue::{Delivery, Message, Result};

#[tokio::main]
async fn main() -> Result<()> {
    let url = std::env::var("QUEUE_URL").unwrap_or_else(|_| "memory://".to_owned());
    println!("broker: {}", url.split(':').next().unwrap_or_default());
    let client = anyqueue::connect(&url).await?;

    // A name of its own, so that nothing is left of an earlier run.
    let run = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
    let (queue, dead) = (format!("quickstart-{run}"), format!("quickstart-{run}-dlq"));

    let sender = client.sender(&queue).await?;
    let mut inbox = client.receiver(&queue).await?;

    for text in ["hello", "flaky", "broken"] {
        // `Ok` means that the broker has the message.
        sender.send(Message::new(text).header("tenant", "acme")).await?;
        println!("sent {text}");
        while !answer(inbox.receive().await?) {}
    }

    let mut letters = client.receiver(&dead).discard_dead_letters().await?;
    let letter = letters.receive().await?;
    let header = |name| letter.headers().get(name).and_then(|v| v.as_str()).unwrap_or("nothing").to_owned();
    println!("dead letter: {}, because: {}", letter.text().unwrap_or_default(), header("anyqueue-reason"));
    letter.ack();

    let report = client.close(Duration::from_secs(10)).await;
    println!("closed, nothing left undone: {}", report.is_clean());

    let client = anyqueue::connect(&url).await?;
    client.delete(&queue).await?;
    client.delete(&dead).await?;
    client.close(Duration::from_secs(10)).await;
    Ok(())
}

/// Answers a message; says whether it is done with.
fn answer(delivery: Delivery) -> bool {
    let (text, attempt) = (delivery.text().unwrap_or_default().to_owned(), delivery.attempt());
    match (text.as_str(), attempt) {
        ("flaky", 1) => {
            println!("  {text}, attempt {attempt}: failed, again in a second");
            delivery.retry_after(Duration::from_secs(1));
            false
        }
        ("broken", _) => {
            println!("  {text}, attempt {attempt}: can never work, to the dead letters");
            delivery.reject("this message is broken");
            true
        }
        _ => {
            println!("  {text}, attempt {attempt}: done");
            delivery.ack();
            true
        }
    }
}
