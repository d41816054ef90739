//! Putting dead letters back where Amazon's count says less than there is.

use std::time::Duration;

use queue_core::{Client, Message};
use tokio::time::timeout;

mod endpoint;

use endpoint::Endpoint;

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

#[tokio::test]
async fn a_pass_goes_on_behind_a_count_that_was_too_low() -> Outcome {
    // More than one poll brings; and as long as those are not answered nothing else of their group comes.
    const COUNT: usize = 25;
    let endpoint = Endpoint::start().await?;
    let client = Client::connect_with(&endpoint.url("&wait_time=1s"), &[queue_sqs::DRIVER]).await?;
    drop(client.sender("low.fifo").await?);
    // What is delayed does not count as being there.
    let graveyard = client.sender("low-dlq.fifo").native("DelaySeconds", "1").await?;
    graveyard.send_batch((0..COUNT).map(|n| Message::new(n.to_string()).key("k"))).await?;
    let redriven = timeout(Duration::from_secs(60), client.redrive("low.fifo").into_future()).await??;
    assert_eq!((redriven.moved, redriven.stopped.is_none()), (COUNT as u64, true), "{redriven:?}");
    let mut receiver = client.receiver("low.fifo").discard_dead_letters().await?;
    for n in 0..COUNT {
        let delivery = timeout(Duration::from_secs(30), receiver.receive()).await??;
        assert_eq!(delivery.text(), Some(&*n.to_string()));
        delivery.ack();
    }
    Ok(())
}
