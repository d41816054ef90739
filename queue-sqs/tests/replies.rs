//! Queues for replies: whose they are, and what becomes of those that were left behind.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use queue_core::{Client, Declare, ErrorKind, request};
use tokio::time::{sleep, timeout};

mod endpoint;

use endpoint::Endpoint;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const SOON: Duration = Duration::from_secs(60);

async fn connect(endpoint: &Endpoint) -> Outcome<Client> {
    Ok(Client::connect_with(&endpoint.url("&wait_time=1s"), &[queue_sqs::DRIVER]).await?)
}

async fn is_there(client: &Client, queue: &str) -> Outcome<bool> {
    match client.receiver(queue).declare(Declare::Verify).discard_dead_letters().await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

async fn until_gone(client: &Client, queue: &str) -> Outcome {
    let gone = async {
        while is_there(client, queue).await? {
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    timeout(SOON, gone).await.map_err(|_| format!("{queue} stays"))?
}

/// The name of a queue for replies that was made so long ago.
fn made(ago: Duration) -> Outcome<String> {
    let seconds = (SystemTime::now() - ago).duration_since(UNIX_EPOCH)?.as_secs();
    Ok(format!("{}-{seconds}-0123456789abcdef", request::REPLIES))
}

/// Has a request sent, and its reply address.
async fn ask(client: &Client) -> Outcome<String> {
    let asking = tokio::spawn({
        let client = client.clone();
        async move { client.request("prices", "x").timeout(SOON).await }
    });
    let mut inbox = client.receiver("prices").await?;
    let delivery = timeout(SOON, inbox.receive()).await??;
    let address = delivery.get_reply_to().ok_or("no address to reply to")?.to_owned();
    inbox.replier().reply(&delivery, "y".into()).await?;
    delivery.ack();
    asking.await??;
    Ok(address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_left_is_deleted_by_the_next() -> Outcome {
    const DAY: Duration = Duration::from_secs(86_400);
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let (old, young) = (made(3 * DAY)?, made(DAY)?);
    let foreign = format!("{}-of-somebody-else", request::REPLIES);
    client.sender("prices").await?;
    // By Amazon's client, which looks for none.
    let sqs = client.broker().native().downcast_ref::<aws_sdk_sqs::Client>().ok_or("no client")?;
    for queue in [&young, &foreign, &old] {
        sqs.create_queue().queue_name(queue).send().await?;
    }
    assert!(is_there(&client, &old).await?);
    ask(&client).await?;
    until_gone(&client, &old).await?;
    assert!(is_there(&client, &young).await? && is_there(&client, &foreign).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_queue_is_gone_with_its_client() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let (closed, dropped, other) = (connect(&endpoint).await?, connect(&endpoint).await?, connect(&endpoint).await?);
    other.sender("prices").await?;
    let (one, two) = (ask(&closed).await?, ask(&dropped).await?);
    assert!(one != two && is_there(&other, &one).await? && is_there(&other, &two).await?);
    assert_eq!(ask(&closed).await?, one, "a client has one queue");
    let report = closed.close(SOON).await;
    assert!(report.is_clean(), "{report:?}");
    assert!(!is_there(&other, &one).await?);
    drop(dropped);
    until_gone(&other, &two).await
}
