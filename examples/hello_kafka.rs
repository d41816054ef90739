//! Hello, Kafka: puts records into the topic `test_topic`, or prints all of them, from the earliest on, as
//! `topic:partition:offset: key=… value=…`.
//!
//! ```sh
//! cargo run --example hello_kafka --features kafka -- send user-7 "Hello World!"
//! cargo run --example hello_kafka --features kafka -- receive
//! ```
//! `QUEUE_URL` says where (`kafka://localhost:9092`).

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyqueue::{Client, Message, Result, Start};

const TOPIC: &str = "test_topic";

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let url = std::env::var("QUEUE_URL").unwrap_or_else(|_| "kafka://localhost:9092".to_owned());
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>()[..] {
        [Some("send"), Some(key), Some(value)] => send(&anyqueue::connect(&url).await?, key, value).await?,
        [Some("receive")] => receive(&anyqueue::connect(&url).await?).await?,
        _ => {
            eprintln!("usage: hello_kafka send KEY VALUE | receive");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn send(client: &Client, key: &str, value: &str) -> Result<()> {
    let topic = client.sender(format!("topic:{TOPIC}")).await?;
    topic.send(Message::new(value.to_owned()).key(key.to_owned())).await?;
    println!("sent key={key} value={value}");
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn receive(client: &Client) -> Result<()> {
    // Without a group: on its own, and nothing is committed.
    let mut log = client.receiver(format!("topic:{TOPIC}")).start(Start::Earliest).await?;
    let mut end = pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            biased;
            _ = &mut end => break,
            record = log.receive() => {
                let record = record?;
                let (partition, offset) = (record.position().partition, record.position().offset);
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let key = record.get_key().map_or_else(|| "none".to_owned(), |key| text(key));
                println!(
                    "{TOPIC}:{}:{}: key={key} value={}",
                    partition.unwrap_or_default(),
                    offset.unwrap_or_default(),
                    text(record.payload())
                );
                record.ack();
            }
        }
    }
    client.close(Duration::from_secs(5)).await;
    Ok(())
}
