//! What the adapter promises where Amazon is stricter than emulators, or fails: order within a message group, pauses
//! before another try, answers that come too late, copies that are no repetitions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering as Atomic};
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::future::ProvideCredentials as Provided;
use aws_sdk_sqs::config::{Credentials, ProvideCredentials};
use queue_core::{
    Answered, Client, Declare, Delivery, Entry, ErrorKind, HeaderValue, Message, Ordering, Outcome as Fate,
    RESERVED_PREFIX, Receiver, Sender, Topology, dead_letter,
};
use queue_sqs::SqsBroker;
use tokio::time::{Instant, timeout};

mod endpoint;

use endpoint::{Endpoint, Faults};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome = Result<(), Failure>;

const SOON: Duration = Duration::from_secs(20);
const LEASE: Duration = Duration::from_secs(2);

async fn connect(endpoint: &Endpoint) -> Result<Client, Failure> {
    Ok(Client::connect_with(&endpoint.url("&wait_time=1s"), &[queue_sqs::DRIVER]).await?)
}

async fn next(receiver: &mut Receiver) -> Result<Delivery, Failure> {
    Ok(timeout(SOON, receiver.receive()).await.map_err(|_| "nothing arrived")??)
}

fn keyed(key: usize, text: impl ToString) -> Message {
    Message::new(text.to_string()).key(format!("key-{key}"))
}

/// Confirms as many messages of each key as it is told, all handed over at once.
async fn send_keyed(sender: &Sender, keys: usize, each: usize) -> Outcome {
    let messages = (0..keys * each).map(|i| keyed(i % keys, i / keys));
    timeout(SOON, sender.send_batch(messages)).await.map_err(|_| "the sends had no end")??;
    Ok(())
}

#[tokio::test]
async fn a_group_stays_in_order_when_entries_fail() -> Outcome {
    let (keys, each) = (4, 25);
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let sender = client.sender("order.fifo").await?;
    endpoint.set_faults(Faults { fail_entry: 0.2, ..Faults::default() });
    send_keyed(&sender, keys, each).await?;
    assert!(endpoint.counts().fault("fail_entry") > 0, "nothing failed");
    endpoint.set_faults(Faults::default());
    let mut receiver = client.receiver("order.fifo").ordering(Ordering::PerKey).discard_dead_letters().await?;
    let mut seen: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for _ in 0..keys * each {
        let delivery = next(&mut receiver).await?;
        let expected = seen.entry(delivery.get_key().ok_or("no key")?.to_vec()).or_default();
        assert_eq!(delivery.text().unwrap_or_default(), expected.to_string());
        *expected += 1;
        delivery.ack();
    }
    assert!(seen.len() == keys && seen.values().all(|count| *count == each), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn a_request_has_one_message_of_a_group_and_ten_of_ten() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let sender = client.sender("groups.fifo").await?;
    send_keyed(&sender, 1, 20).await?;
    let one_group = endpoint.counts();
    assert_eq!(one_group.of("SendMessageBatch"), 20);
    send_keyed(&sender, 10, 2).await?;
    assert_eq!(endpoint.counts().since(&one_group).of("SendMessageBatch"), 2);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_sent_holds_up_no_other_queue() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    for queue in ["a.fifo", "b.fifo"] {
        client.sender(queue).await?;
    }
    let sender = client.sender("orders").await?;
    let refused = Message::new("x").delay(Duration::from_secs(1)).to("a.fifo".parse()?);
    let (refused, taken) =
        tokio::join!(sender.send(refused), timeout(SOON, sender.send(Message::new("y").to("b.fifo".parse()?))));
    assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
    taken.map_err(|_| "it was not sent")??;
    Ok(())
}

#[tokio::test]
async fn fifo_and_standard_queues_of_a_sender_take_turns() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = Client::connect_with(&endpoint.url("&wait_time=1s&max_sends=1"), &[queue_sqs::DRIVER]).await?;
    client.sender("replies").await?;
    client.sender("other.fifo").await?;
    let sender = client.sender("busy.fifo").await?;
    let before = endpoint.counts();
    let busy = tokio::spawn({
        let sender = sender.clone();
        async move { send_keyed(&sender, 100, 10).await }
    });
    let under_way = async {
        while endpoint.counts().since(&before).of("SendMessageBatch") < 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, under_way).await.map_err(|_| "nothing is sent")?;
    for to in ["replies", "other.fifo"] {
        let sent = endpoint.counts();
        timeout(SOON, sender.send(keyed(0, "x").to(to.parse()?))).await.map_err(|_| "it waits for ever")??;
        let ahead = endpoint.counts().since(&sent).of("SendMessageBatch");
        assert!(ahead <= 10, "{ahead} requests went before that to {to}");
    }
    busy.await??;
    assert!(endpoint.counts().since(&before).of("SendMessageBatch") >= 100);
    Ok(())
}

#[tokio::test]
async fn a_sender_to_a_fifo_queue_gives_up_before_amazon_forgets_an_id() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let long = Duration::from_secs(241);
    let refused = client.sender("long.fifo").deadline(long).await.map(drop);
    assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
    client.sender("short.fifo").deadline(Duration::from_secs(240)).await?;
    let sender = client.sender("long").deadline(long).await?;
    sender.send("x").await?;
    let refused = sender.send(Message::new("x").to("short.fifo".parse()?)).await;
    assert_eq!(refused.err().map(|error| error.kind()), Some(ErrorKind::Unsupported));
    Ok(())
}

/// Tries come at 0, 0.1, 0.3, 0.7 and 1.5 s, each pause cut by up to a half: seven within two seconds at most. Without
/// pauses there are hundreds.
#[tokio::test]
async fn refused_sends_are_tried_again_with_pauses() -> Outcome {
    let throttled = Faults { throttle: 1.0, ..Faults::default() };
    let failing = Faults { fail_entry: 1.0, ..Faults::default() };
    for (queue, faults) in [("a", throttled), ("a.fifo", throttled), ("b", failing), ("b.fifo", failing)] {
        let endpoint = Endpoint::start().await?;
        let client = connect(&endpoint).await?;
        let sender = client.sender(queue).await?;
        endpoint.set_faults(faults);
        let sending = tokio::spawn(async move { sender.send(keyed(0, "x")).await });
        tokio::time::sleep(Duration::from_secs(2)).await;
        let tries = endpoint.counts().of("SendMessageBatch");
        assert!((2..=8).contains(&tries), "{queue}, {faults:?}: {tries} tries");
        endpoint.set_faults(Faults::default());
        timeout(SOON, sending).await.map_err(|_| "it was not tried again")???;
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_after_the_broker_let_go_is_a_lost_lease() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    for queue in ["late", "late.fifo"] {
        client.sender(queue).await?.send("x").await?;
        let mut receiver = client.receiver(queue).discard_dead_letters().await?;
        let delivery = next(&mut receiver).await?;
        endpoint.pass(Duration::from_secs(31));
        let extended = delivery.extend(Duration::from_secs(60)).await;
        assert_eq!(extended.err().map(|error| error.kind()), Some(ErrorKind::LeaseLost), "{queue}");
        let flushed = receiver.flush().await;
        assert_eq!(flushed.err().map(|error| error.kind()), Some(ErrorKind::LeaseLost), "{queue}");
        // A standard queue says success to anybody who deletes, so it is not asked.
        let deletes = endpoint.counts().of("DeleteMessageBatch");
        assert_eq!(delivery.ack_confirmed().await?, Answered::LeaseLost, "{queue}");
        assert_eq!(endpoint.counts().of("DeleteMessageBatch"), deletes, "{queue}");
        receiver.close(SOON).await;
    }
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_refused_until_its_lease_ends_is_a_lost_lease() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    for (queue, faults) in [
        ("entries", Faults { fail_entry: 1.0, ..Faults::default() }),
        ("requests", Faults { throttle: 1.0, ..Faults::default() }),
        ("answers", Faults { lose: 1.0, ..Faults::default() }),
    ] {
        client.sender(queue).await?.send("x").await?;
        let mut receiver = client.receiver(queue).lease(LEASE).discard_dead_letters().await?;
        let delivery = next(&mut receiver).await?;
        endpoint.set_faults(faults);
        let (acked, ()) = tokio::join!(timeout(SOON, delivery.ack_confirmed()), async {
            tokio::time::sleep(LEASE).await;
            // From here on the endpoint would say success to the old receipt.
            endpoint.set_faults(Faults::default());
        });
        let acked = acked.map_err(|_| "no verdict")?;
        assert_eq!(acked.err().map(|error| error.kind()), Some(ErrorKind::LeaseLost), "{queue}");
        receiver.close(SOON).await;
    }
    Ok(())
}

#[tokio::test]
async fn an_extension_that_is_tried_again_does_not_undo_the_answer() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    client.sender("undone").await?.send("x").await?;
    let mut receiver = client.receiver("undone").lease(Duration::from_secs(4)).discard_dead_letters().await?;
    let delivery = next(&mut receiver).await?;
    endpoint.set_faults(Faults { fail_entry: 1.0, ..Faults::default() });
    let before = endpoint.counts();
    while endpoint.counts().since(&before).of("ChangeMessageVisibilityBatch") < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    endpoint.set_faults(Faults::default());
    let before = endpoint.counts();
    delivery.retry_after(Duration::from_secs(60));
    receiver.flush().await?;
    // The next try of the extension was due within this time.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(endpoint.counts().since(&before).of("ChangeMessageVisibilityBatch"), 1);
    endpoint.pass(Duration::from_secs(10));
    assert!(timeout(Duration::from_secs(3), receiver.receive()).await.is_err(), "it came early");
    endpoint.pass(Duration::from_secs(50));
    next(&mut receiver).await?.ack_confirmed().await?;
    Ok(())
}

#[tokio::test]
async fn a_delete_that_is_confirmed_after_the_lease_is_not_told_as_taken() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    client.sender("slow").await?.send("x").await?;
    let mut receiver = client.receiver("slow").lease(LEASE).discard_dead_letters().await?;
    let delivery = next(&mut receiver).await?;
    endpoint.set_faults(Faults { delay: 1.0, late_by: LEASE, ..Faults::default() });
    let acked = delivery.ack_confirmed().await;
    let told = acked.err().map(|error| (error.kind(), error.outcome()));
    assert_eq!(told, Some((ErrorKind::LeaseLost, Fate::Unknown)));
    Ok(())
}

/// Credentials that cannot be had while the switch is off. They are asked for at each request, because they expire at once.
#[derive(Debug)]
struct Switched {
    on: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
}

impl ProvideCredentials for Switched {
    fn provide_credentials<'a>(&'a self) -> Provided<'a>
    where
        Self: 'a,
    {
        if self.on.load(Atomic::Relaxed) {
            return Provided::ready(Ok(Credentials::new("test", "test", None, Some(SystemTime::now()), "test")));
        }
        self.refused.fetch_add(1, Atomic::Relaxed);
        Provided::ready(Err(CredentialsError::not_loaded("it is off")))
    }
}

#[tokio::test]
async fn credentials_that_cannot_be_had_for_a_moment_end_no_receiver() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let on = Arc::new(AtomicBool::new(true));
    let refused = Arc::new(AtomicUsize::new(0));
    let provider = Switched { on: on.clone(), refused: refused.clone() };
    let config = endpoint.client().config().to_builder().credentials_provider(provider).build();
    let broker = SqsBroker::from_client(aws_sdk_sqs::Client::from_conf(config));
    let client = Client::from_broker(Arc::new(broker));
    let sender = client.sender("switched").await?;
    let mut receiver = client.receiver("switched").discard_dead_letters().await?;
    sender.send("before").await?;
    next(&mut receiver).await?.ack_confirmed().await?;
    on.store(false, Atomic::Relaxed);
    // Ends the poll that is under way; the next ones fail, more often than refusals end a receiver.
    endpoint.pass(Duration::from_secs(20));
    let polls = async {
        while refused.load(Atomic::Relaxed) < 7 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, polls).await.map_err(|_| "it is not asked for")?;
    let sending = tokio::spawn(async move { sender.send("behind").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!sending.is_finished(), "{:?}", sending.await);
    on.store(true, Atomic::Relaxed);
    timeout(SOON, sending).await.map_err(|_| "it was not tried again")???;
    assert_eq!(next(&mut receiver).await?.text(), Some("behind"));
    Ok(())
}

/// What a poll has taken that is given up is away for its lease, and counts as delivered.
#[tokio::test]
async fn a_broker_that_is_slow_loses_no_message_over_and_over() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    client.sender("slow").await?.send("x").await?;
    let opening = client.receiver("slow").lease(8 * LEASE).discard_dead_letters();
    // More than the first two polls wait for their answers.
    endpoint.set_faults(Faults { delay: 1.0, late_by: Duration::from_secs(13), ..Faults::default() });
    let mut receiver = opening.await?;
    let delivery = timeout(3 * SOON, receiver.receive()).await.map_err(|_| "each poll was given up")??;
    assert_eq!(delivery.attempt(), 2);
    delivery.ack();
    Ok(())
}

#[tokio::test]
async fn options_are_read_where_nothing_is_made() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    client.sender("orders").await?;
    let (name, value) = ("VisibilityTimout", "30");
    let sender = client.sender("orders").declare(Declare::Assume).native(name, value).await.map(drop);
    let receiver = client.receiver("orders").declare(Declare::Assume).native(name, value).await.map(drop);
    for opened in [sender, receiver] {
        let error = opened.err().ok_or("it was opened")?;
        assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some(name)), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn dead_letters_with_an_entry_of_their_own_are_made_by_it() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let mut orders = Entry::new("orders".parse()?);
    let mut dead = Entry::new("orders-dlq".parse()?);
    orders.dead_letter = Some(dead.address.clone());
    dead.retention = Some(Duration::from_secs(86_400));
    let topology = Topology::from_iter([orders, dead]);
    client.broker().declare(&topology).await?;
    client.broker().declare(&topology).await?;
    Ok(())
}

/// All of it takes far less than the five minutes for which Amazon remembers an id.
#[tokio::test]
async fn a_dead_letter_that_is_put_back_is_processed_again_and_again() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let sender = client.sender("orders.fifo").await?;
    let mut orders = client.receiver("orders.fifo").dead_letter("dead.fifo").await?;
    let mut dead = client.receiver("dead.fifo").discard_dead_letters().await?;
    let began = Instant::now();
    sender.send(keyed(0, "x").id("the-order")).await?;
    for round in 0..3 {
        let delivery = next(&mut orders).await.map_err(|error| format!("round {round}: {error}"))?;
        assert_eq!(delivery.get_id(), Some("the-order"));
        delivery.reject("not today");
        let letter = next(&mut dead).await.map_err(|error| format!("the letter of round {round}: {error}"))?;
        assert_eq!(letter.headers().get(dead_letter::REASON).and_then(HeaderValue::as_str), Some("not today"));
        let (mut message, ticket) = letter.split();
        message.headers_mut().retain(|name, _| !name.starts_with(RESERVED_PREFIX));
        sender.send(message).await?;
        ticket.ack();
    }
    next(&mut orders).await?.ack_confirmed().await?;
    assert!(began.elapsed() < Duration::from_secs(300));
    Ok(())
}
