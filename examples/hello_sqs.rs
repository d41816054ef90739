//! Hello, SQS: creates the queue `test_queue`, prints its URL and puts a message into it, or prints what comes from it. Each
//! message stays away for 5 s, and is kept for a day.
//!
//! ```sh
//! cargo run --example hello_sqs --features sqs -- send
//! cargo run --example hello_sqs --features sqs -- receive
//! ```
//! `QUEUE_URL` says where (`sqs://?region=us-east-1`; with `endpoint`, another than Amazon's).

use std::error::Error;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyqueue::Client;
use anyqueue::sqs::aws_sdk_sqs;

const QUEUE: &str = "test_queue";
/// Attributes that the queue is created with, in seconds; one that exists is taken as it is.
const ATTRIBUTES: [(&str, &str); 2] = [("DelaySeconds", "5"), ("MessageRetentionPeriod", "86400")];

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let url = std::env::var("QUEUE_URL").unwrap_or_else(|_| "sqs://?region=us-east-1".to_owned());
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>()[..] {
        [Some("send")] => send(&anyqueue::connect(&url).await?, "Hello World!").await?,
        [Some("send"), Some(text)] => send(&anyqueue::connect(&url).await?, text).await?,
        [Some("receive")] => receive(&anyqueue::connect(&url).await?).await?,
        _ => {
            eprintln!("usage: hello_sqs send [TEXT] | receive");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn send(client: &Client, text: &str) -> Result<(), Box<dyn Error>> {
    let opening = ATTRIBUTES.iter().fold(client.sender(QUEUE), |opening, (name, value)| opening.native(*name, *value));
    let queue = opening.await?;
    // What only SQS has is asked of its own client.
    let sqs: &aws_sdk_sqs::Client = client.broker().native().downcast_ref().ok_or("QUEUE_URL is not that of an SQS")?;
    println!("{}", sqs.get_queue_url().queue_name(QUEUE).send().await?.queue_url().unwrap_or_default());
    let sent = queue.send(text.to_owned()).await?;
    println!("sent '{text}' as {}", sent.id.as_deref().unwrap_or("?"));
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn receive(client: &Client) -> Result<(), Box<dyn Error>> {
    let opening =
        ATTRIBUTES.iter().fold(client.receiver(QUEUE), |opening, (name, value)| opening.native(*name, *value));
    let mut inbox = opening.await?;
    println!("waiting for messages, until Ctrl-C");
    let mut end = pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            biased;
            _ = &mut end => break,
            delivery = inbox.receive() => {
                let delivery = delivery?;
                println!("received '{}'", String::from_utf8_lossy(delivery.payload()));
                delivery.ack();
            }
        }
    }
    client.close(Duration::from_secs(5)).await;
    Ok(())
}
