//! Values as payloads: what each codec makes, reads and refuses.
#![cfg(all(
    feature = "json",
    feature = "cbor",
    feature = "msgpack",
    feature = "protobuf",
    feature = "gzip",
    feature = "zstd"
))]

mod common;

use common::{Outcome, Running, broker, reasons, receiver};
use queue_core::{ErrorKind, Message};
use queue_worker::codec::{Cbor, Codec, Decode, Encode, Gzip, Json, MessagePack, Protobuf, Zstd};
use queue_worker::{Job, Typed, TypedReceiver, TypedSender, Worker};

#[derive(Clone, PartialEq, serde::Serialize, serde::Deserialize, prost::Message)]
struct Order {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(string, tag = "2")]
    name: String,
}

fn order() -> Order {
    Order { id: 7, name: "grüße ".repeat(100) }
}

async fn there_and_back<C: Encode<Order> + Decode<Order>>() -> Outcome {
    let client = broker().await?;
    let orders = TypedSender::<Order, C>::new(client.sender("orders").await?);
    orders.send(&order()).await?;
    // Without a word on what it is.
    orders.sender().send(Message::new(C::encode(&order())?)).await.map(drop)?;
    let mut plain = receiver(&client, "orders").await?;
    let message = plain.receive().await?;
    assert_eq!(message.get_content_type(), Some(C::CONTENT_TYPE));
    let encoding = message.headers().get("content-encoding").and_then(|value| value.as_str());
    assert_eq!(encoding, C::CONTENT_ENCODING);
    message.release();
    plain.close(common::SOON).await;
    let mut inbox = TypedReceiver::<Order, C>::new(client.receiver("orders").await?);
    let mut got = 0;
    let expected = if C::CONTENT_ENCODING.is_none() { 2 } else { 1 };
    while got < expected {
        let (value, delivery) = inbox.receive().await?;
        assert_eq!(value, order());
        delivery.ack();
        got += 1;
    }
    Ok(())
}

#[tokio::test]
async fn each_codec_reads_what_it_makes() -> Outcome {
    there_and_back::<Json>().await?;
    there_and_back::<MessagePack>().await?;
    there_and_back::<Cbor>().await?;
    there_and_back::<Protobuf>().await?;
    there_and_back::<Gzip<Json>>().await?;
    there_and_back::<Zstd<Protobuf>>().await
}

#[test]
fn the_formats_are_those_of_others() -> Outcome {
    let order = Order { id: 7, name: "x".to_owned() };
    assert_eq!(Json::encode(&order)?, br#"{"id":7,"name":"x"}"#);
    // A map of two, "id", 7, "name", "x".
    assert_eq!(MessagePack::encode(&order)?, b"\x82\xa2id\x07\xa4name\xa1x");
    assert_eq!(Cbor::encode(&order)?, b"\xa2\x62id\x07\x64name\x61x");
    assert_eq!(Protobuf::encode(&order)?, b"\x08\x07\x12\x01x");
    assert_eq!(Gzip::<Json>::encode(&order)?[..2], [0x1f, 0x8b]);
    assert_eq!(Zstd::<Json>::encode(&order)?[..4], [0x28, 0xb5, 0x2f, 0xfd]);
    // As an array, which others may write.
    assert_eq!(<MessagePack as Decode<Order>>::decode(b"\x92\x07\xa1x")?, order);
    assert!(Gzip::<Json>::encode(&self::order())?.len() < Json::encode(&self::order())?.len() / 4);
    Ok(())
}

#[test]
fn what_stands_behind_a_value_is_told() {
    for error in [
        <MessagePack as Decode<u8>>::decode(b"\x07\x08").unwrap_err(),
        <Cbor as Decode<u8>>::decode(b"\x07\x08").unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "1 bytes stand behind the value");
    }
    assert!(<Json as Decode<u8>>::decode(b"7 8").is_err());
}

#[test]
fn a_payload_that_grows_without_end_is_refused() -> Outcome {
    let bomb = vec![b' '; 300 << 20];
    let small = Gzip::<Raw>::encode(&bomb)?;
    assert!(small.len() < 1 << 20);
    let error = <Gzip<Raw> as Decode<Vec<u8>>>::decode(&small).unwrap_err();
    assert_eq!(error.to_string(), "the payload is larger than 268435456 bytes");
    Ok(())
}

/// Bytes as they are.
struct Raw;

impl Codec for Raw {
    const CONTENT_TYPE: &'static str = "application/octet-stream";
}

impl Encode<Vec<u8>> for Raw {
    fn encode(value: &Vec<u8>) -> Result<Vec<u8>, queue_worker::BoxError> {
        Ok(value.clone())
    }
}

impl Decode<Vec<u8>> for Raw {
    fn decode(payload: &[u8]) -> Result<Vec<u8>, queue_worker::BoxError> {
        Ok(payload.to_vec())
    }
}

#[tokio::test]
async fn what_cannot_be_read_is_a_dead_letter_and_the_next_comes() -> Outcome {
    let client = broker().await?;
    let orders = client.sender("orders").await?;
    let other = TypedSender::<Order, Gzip<Json>>::new(client.sender("orders").await?);
    orders.send(Message::new("{}").content_type("application/json")).await?;
    orders.send(Message::new("{}").content_type("text/csv; header=present")).await?;
    other.send(&order()).await?;
    TypedSender::<Order>::new(client.sender("orders").await?).send(&order()).await?;
    let mut inbox = TypedReceiver::<Order>::new(client.receiver("orders").await?);
    let (value, delivery) = inbox.receive().await?;
    assert_eq!(value, order());
    delivery.ack();
    assert_eq!(
        reasons(&client, 3).await?,
        [
            "missing field `id` at line 1 column 2",
            "the content encoding is gzip, expected none",
            "the content type is text/csv; header=present, expected application/json",
        ]
    );
    Ok(())
}

#[tokio::test]
async fn a_handler_takes_a_value_of_any_codec() -> Outcome {
    let client = broker().await?;
    let sender = TypedSender::<Order, Zstd<Cbor>>::new(client.sender("orders").await?);
    let message = sender.message(&order())?.key("seven");
    sender.sender().send(message).await?;
    let worker = Worker::new(client.receiver("orders").await?);
    let running = Running::start(worker, |Typed(order, ..): Typed<Order, Zstd<Cbor>>, job: Job| async move {
        assert_eq!(order, self::order());
        assert_eq!(job.get_key().map(|key| &key[..]), Some(&b"seven"[..]));
    });
    running.until(|counts| counts.processed == 1).await?;
    assert!(running.stop().await?.is_clean());
    Ok(())
}

#[tokio::test]
async fn a_value_without_a_form_is_an_error_before_it_is_sent() -> Outcome {
    let client = broker().await?;
    type Odd = std::collections::HashMap<(u8, u8), u8>;
    let sender = TypedSender::<Odd>::new(client.sender("orders").await?);
    let refused = sender.send(&Odd::from([((1, 2), 3)])).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Codec);
    assert_eq!(refused.message(), "the value cannot be sent as application/json: key must be a string");
    assert_eq!(refused.context("address"), Some("orders"));
    Ok(())
}
