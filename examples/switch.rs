//! The same business function on any broker: the file names it.
//!
//! `cargo run --example switch` reads `examples/queue.toml`, where every sender and receiver uses the memory broker;
//! change one word there, or run `BROKER=kafka cargo run --example switch --features full`.

use std::time::Duration;

use anyqueue::{Bindings, Message, Receiver, Result, Sender};

#[tokio::main]
async fn main() -> Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "examples/queue.toml".to_owned());
    let queues = Bindings::from_path(path)?.connect().await?;
    let sender = queues.sender("invoices").await?;
    let mut receiver = queues.receiver("invoices").await?;

    let sum = bill(&sender, &mut receiver, &[1200, 350, 99]).await?;
    println!("billed {sum} cents");

    receiver.close(Duration::from_secs(10)).await;
    queues.close(Duration::from_secs(10)).await;
    Ok(())
}

/// Sends an invoice for each amount, and books what arrives. Knows nothing of brokers.
async fn bill(sender: &Sender, receiver: &mut Receiver, amounts: &[u32]) -> Result<u32> {
    sender.send_batch(amounts.iter().map(|amount| Message::new(amount.to_string()))).await?;
    let mut sum = 0;
    for _ in amounts {
        let invoice = receiver.receive().await?;
        match invoice.text().and_then(|text| text.parse::<u32>().ok()) {
            Some(amount) => {
                sum += amount;
                invoice.ack_confirmed().await?;
            }
            None => drop(invoice.reject("an invoice is a number of cents")),
        }
    }
    Ok(sum)
}
