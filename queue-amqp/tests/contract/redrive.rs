//! Dead letters that are put back while the connection breaks.

use std::collections::BTreeSet;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use queue_amqp::DRIVER;
use queue_core::{Client, ErrorKind};

use crate::common::{soon, unique};
use crate::proxy::Proxy;

/// How long nothing may come; the count ends a pass before.
const SHORT: Duration = Duration::from_millis(200);

pub(crate) async fn a_dead_letter_is_counted_once_when_the_connection_breaks(url: String) {
    // More than are fetched at once, so that the pass goes on.
    const COUNT: usize = 600;
    let proxy = Arc::new(Proxy::start(&url).await);
    let broken = Client::connect_with(&proxy.url, &[DRIVER]).await.unwrap();
    let client = Client::connect_with(&url, &[DRIVER]).await.unwrap();
    let name = unique("broken");
    let dead = format!("{name}-dlq");
    let mut receiver = client.receiver(name.as_str()).await.unwrap();
    let letters = (0..COUNT).map(|n| n.to_string());
    client.sender(dead.as_str()).await.unwrap().send_batch(letters).await.unwrap();
    let (link, mut seen) = (proxy.clone(), 0);
    let redriven = broken.redrive(name.as_str()).filter(move |_| {
        // With those before it held, and none of them on its way back.
        seen += 1;
        if seen == 5 {
            link.cut();
        }
        true
    });
    let redriven = soon(redriven.into_future()).await.unwrap();
    assert_eq!(redriven.stopped.map(|e| e.kind()), Some(ErrorKind::LeaseLost));
    assert!(!redriven.failed.is_empty() && redriven.failed.iter().all(|e| e.kind() == ErrorKind::LeaseLost));
    // The server may not know yet that those that were held are nobody's.
    let mut moved = redriven.moved;
    let rest = async {
        while moved < COUNT as u64 {
            moved += client.redrive(name.as_str()).idle(SHORT).await.unwrap().moved;
        }
    };
    soon(rest).await;
    assert_eq!(moved, COUNT as u64);
    let mut texts = BTreeSet::new();
    while texts.len() < COUNT {
        let delivery = soon(receiver.receive()).await.unwrap();
        texts.insert(delivery.text().unwrap().to_owned());
        delivery.ack();
    }
    for queue in [&name, &dead] {
        client.delete(queue).await.unwrap();
    }
}
