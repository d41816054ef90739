//! lapin, fed as well as it can be by hand.

use futures::StreamExt;
use futures::future::ready;
use futures::stream::FuturesUnordered;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions, QueuePurgeOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

use crate::latency::open_loop;
use crate::process::{Meter, Outcome, Run};

/// Whole publish-and-confirm futures in flight.
const WINDOW: usize = 1024;
/// Acknowledged at once.
const MULTIPLE: usize = 64;
pub(crate) const PREFETCH: u16 = 1000;
/// Concurrent senders.
pub(crate) const TASKS: usize = 128;

async fn channel(run: &Run) -> (Connection, Channel) {
    let connection = Connection::connect(&run.url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    (connection, channel)
}

/// Declares the queue, empty.
pub(crate) async fn declare(run: &Run) {
    let (connection, channel) = channel(run).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(run.kind.as_str().into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(run.queue().into(), options, arguments).await.unwrap();
    channel.queue_purge(run.queue().into(), QueuePurgeOptions::default()).await.unwrap();
    connection.close(200, "OK".into()).await.unwrap();
}

/// Puts a whole run's messages into the queue, from a process of its own.
pub(crate) fn fill(run: &Run) {
    crate::process::start(&Run { case: "fill".to_owned(), ..run.clone() }, true);
}

async fn publish(channel: &Channel, queue: &str, id: usize, payload: &[u8]) {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let properties = BasicProperties::default().with_delivery_mode(2).with_message_id(format!("raw-id-{id}").into());
    let confirm = channel.basic_publish("".into(), queue.into(), options, payload, properties).await.unwrap();
    assert_eq!(confirm.await.unwrap(), Confirmation::Ack(None));
}

pub(crate) async fn run(run: &Run) -> Outcome {
    match run.case.as_str() {
        "receive" => return receive(run).await,
        "latency" => return latency(run).await,
        _ => {}
    }
    declare(run).await;
    let (_connection, channel) = channel(run).await;
    let (payload, queue) = (vec![7; run.size], run.queue());
    let meter = Meter::start();
    if run.case == "tasks" {
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| {
                let (channel, queue, payload) = (channel.clone(), queue.clone(), payload.clone());
                let count = run.messages / TASKS;
                tokio::spawn(async move {
                    for n in 0..count {
                        publish(&channel, &queue, task * count + n, &payload).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        return meter.end(run.messages / TASKS * TASKS);
    }
    let mut window = FuturesUnordered::new();
    for n in 0..run.messages {
        if window.len() == WINDOW {
            window.next().await;
        }
        window.push(publish(&channel, &queue, n, &payload));
    }
    while window.next().await.is_some() {}
    meter.end(run.messages)
}

async fn receive(run: &Run) -> Outcome {
    declare(run).await;
    fill(run);
    let (_connection, channel) = channel(run).await;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.unwrap();
    let consumer =
        channel.basic_consume(run.queue().into(), "raw".into(), BasicConsumeOptions::default(), FieldTable::default());
    // What opening takes is measured on neither side.
    let mut consumer = consumer.await.unwrap();
    let meter = Meter::start();
    let mut bytes = 0;
    for n in 1..=run.messages {
        let delivery = consumer.next().await.unwrap().unwrap();
        let payload = bytes::Bytes::from(delivery.data);
        bytes += std::hint::black_box(payload).len();
        if n % MULTIPLE == 0 || n == run.messages {
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await.unwrap();
        }
    }
    assert_eq!(bytes, run.size * run.messages);
    meter.end(run.messages)
}

async fn latency(run: &Run) -> Outcome {
    declare(run).await;
    let (_connection, channel) = channel(run).await;
    let (payload, queue) = (vec![7; run.size], run.queue());
    let (channel, queue, payload) = (&channel, &queue, &payload);
    open_loop(run, |n| ready(publish(channel, queue, n, payload))).await
}
