//! The handles over the memory broker.

use std::time::Duration;

use queue_core::{Answered, Client, ErrorKind, Message, memory};

async fn client(url: &str) -> Client {
    Client::connect_with(url, &[memory::DRIVER]).await.unwrap()
}

#[tokio::test]
async fn a_message_goes_round() {
    let client = client("memory://").await;
    let sender = client.sender("orders").await.unwrap();
    sender.send(Message::new("hello").header("tenant", "acme")).await.unwrap();
    sender.send_batch(["a", "b"]).await.unwrap();
    let mut inbox = client.receiver("orders").await.unwrap();
    let first = inbox.receive().await.unwrap();
    assert_eq!(first.text(), Some("hello"));
    assert_eq!(first.ack(), Answered::Accepted);
    let batch = inbox.receive_batch(10).await.unwrap();
    assert_eq!(batch.len(), 2);
    batch.ack();
    let report = client.close(Duration::from_secs(1)).await;
    assert!(report.is_clean(), "{report:?}");
}

#[tokio::test(start_paused = true)]
async fn a_retry_comes_again_and_a_reject_is_dead_lettered() {
    for profile in ["memory", "amqp", "kafka", "sqs"] {
        let client = client(&format!("memory://?profile={profile}")).await;
        client.sender("orders").await.unwrap().send("x").await.unwrap();
        let mut inbox = client.receiver("orders").await.unwrap();
        let first = inbox.receive().await.unwrap();
        assert_eq!(first.attempt(), 1);
        let started = tokio::time::Instant::now();
        assert_eq!(first.retry_after(Duration::from_secs(5)), Answered::Accepted, "{profile}");
        let second = inbox.receive().await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(5) || profile == "amqp", "{profile}");
        assert_eq!(second.attempt(), 2, "{profile}");
        second.reject("bad");
        let mut dead = client.receiver("orders-dlq").discard_dead_letters().await.unwrap();
        let letter = dead.receive().await.unwrap();
        assert_eq!(letter.headers().get("anyqueue-reason").unwrap().as_str(), Some("bad"), "{profile}");
        letter.ack();
        assert!(client.close(Duration::from_secs(1)).await.is_clean(), "{profile}");
    }
}

/// Compiles only while every future of the handles can be spawned and every handle can be shared.
#[test]
fn futures_can_be_spawned_and_handles_shared() {
    fn spawnable<T: Send>(_: T) {}
    fn shareable<T: Send + Sync + ?Sized + 'static>() {}

    async fn futures(client: Client, mut receiver: queue_core::Receiver, delivery: queue_core::Delivery) {
        let sender = client.sender("a").await.unwrap();
        spawnable(sender.send("x"));
        spawnable(sender.send_batch(["x"]));
        spawnable(sender.submit("x"));
        spawnable(sender.flush());
        spawnable(sender.close(Duration::ZERO));
        spawnable(receiver.receive());
        spawnable(receiver.next());
        spawnable(receiver.receive_batch(1));
        spawnable(receiver.receive_batch_within(1, Duration::ZERO));
        spawnable(receiver.flush());
        spawnable(receiver.stop());
        spawnable(receiver.close(Duration::ZERO));
        spawnable(delivery.extend(Duration::ZERO));
        spawnable(delivery.lost());
        spawnable(delivery.ack_confirmed());
        spawnable(client.ping());
        spawnable(client.close(Duration::ZERO));
    }
    let _ = futures;
    shareable::<Client>();
    shareable::<queue_core::Sender>();
    shareable::<queue_core::Receiver>();
    shareable::<queue_core::ReceiverControl>();
    shareable::<queue_core::Delivery>();
    shareable::<queue_core::Ticket>();
    shareable::<queue_core::Batch>();
    shareable::<queue_core::Error>();
    shareable::<dyn queue_core::Broker>();
    shareable::<dyn queue_core::Producer>();
    shareable::<dyn queue_core::Consumer>();
}

#[tokio::test]
async fn native_options_of_a_file_are_those_of_its_broker() {
    let file = |own: &str| {
        let text = format!("[brokers.main]\nurl = \"memory://\"\n[receivers.r]\nfrom = \"orders\"\n{own}\n");
        queue_core::Bindings::parse(&text)
    };
    // One file serves several brokers: what others would look at is left alone.
    for other in ["amqp.x-max-length = 5", "\"kafka.retention.ms\" = 5", "sqs.tags.a = \"b\"", ""] {
        let connections = file(other).unwrap().connect_with(&[memory::DRIVER]).await.unwrap();
        connections.receiver("r").await.expect(other);
    }
    // Its own it has to know.
    let connections = file("memory.size = 5").unwrap().connect_with(&[memory::DRIVER]).await.unwrap();
    let error = connections.receiver("r").await.unwrap_err();
    assert_eq!((error.kind(), error.context("options")), (ErrorKind::Unsupported, Some("size")));
    // A table of no broker, or a broker's name without an option, is a mistake of the file.
    for wrong in ["rabbit.x-max-length = 5", "amqp = \"x-max-length\""] {
        let error = file(wrong).expect_err(wrong);
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert_eq!(error.context("line"), Some("5"), "{error}");
    }
}
