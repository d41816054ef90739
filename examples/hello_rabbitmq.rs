//! Hello, RabbitMQ: puts a message into the queue `hello`, or prints what comes from it.
//!
//! ```sh
//! cargo run --example hello_rabbitmq --features amqp -- receive
//! cargo run --example hello_rabbitmq --features amqp -- send
//! ```
//! `QUEUE_URL` says where (`amqp://guest:guest@localhost:5672`). A queue that is there is taken as it is. One that is made here is
//! durable and has dead letters: a program that declares it otherwise is refused by the server, one that declares it `passive` is
//! not.

use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use anyqueue::{Client, Result};

const QUEUE: &str = "hello";

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let url = std::env::var("QUEUE_URL").unwrap_or_else(|_| "amqp://guest:guest@localhost:5672".to_owned());
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.iter().map(|argument| argument.to_str()).collect::<Vec<_>>()[..] {
        [Some("send")] => send(&anyqueue::connect(&url).await?, "Hello World!").await?,
        [Some("send"), Some(text)] => send(&anyqueue::connect(&url).await?, text).await?,
        [Some("receive")] => receive(&anyqueue::connect(&url).await?).await?,
        _ => {
            eprintln!("usage: hello_rabbitmq send [TEXT] | receive");
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn send(client: &Client, text: &str) -> Result<()> {
    client.sender(QUEUE).await?.send(text.to_owned()).await?;
    println!(" [x] Sent '{text}'");
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

async fn receive(client: &Client) -> Result<()> {
    let mut inbox = client.receiver(QUEUE).await?;
    println!(" [*] Waiting for messages. To exit press CTRL+C");
    let mut end = pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            biased;
            _ = &mut end => break,
            delivery = inbox.receive() => {
                let delivery = delivery?;
                println!(" [x] Received {}", String::from_utf8_lossy(delivery.payload()));
                delivery.ack();
            }
        }
    }
    client.close(Duration::from_secs(5)).await;
    Ok(())
}
