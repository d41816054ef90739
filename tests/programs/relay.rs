//! From one broker to another.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyqueue::{Client, Message, Ordering};
use tokio::time::timeout;

use crate::process::{example, failed, refused, run};
use crate::{Outcome, block_on};

const KEYS: usize = 10;
const PATIENCE: Duration = Duration::from_secs(240);

/// Messages, by size of the test.
fn messages() -> usize {
    if std::env::var("FULL").is_ok_and(|full| full == "1") { 20_000 } else { 500 }
}

/// A queue that keeps the order of keys, where the broker has such.
fn in_order(url: &str, name: &str) -> String {
    if url.starts_with("sqs") { format!("{name}.fifo") } else { name.to_owned() }
}

fn message(number: usize) -> Message {
    let payload = [&[0xff][..], &number.to_be_bytes()].concat();
    Message::new(payload)
        .key(format!("key-{}", number % KEYS))
        .id(format!("id-{number}"))
        .content_type("application/octet-stream")
        .header("number", i64::try_from(number).unwrap_or_default())
        .header("text", "grüße")
}

pub(crate) fn moves(urls: &[String]) -> Outcome {
    let [from_url, to_url] = urls else { return Err("two brokers".into()) };
    let run_id = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let (from, to) =
        (in_order(from_url, &format!("relay-from-{run_id}")), in_order(to_url, &format!("relay-to-{run_id}")));
    block_on(async {
        let source = anyqueue::connect(from_url).await?;
        let sender = source.sender(&*from).await?;
        let all: Vec<_> = (0..messages()).map(message).collect();
        for some in all.chunks(500) {
            sender.send_batch(some.to_vec()).await?;
        }
        let said = tokio::task::spawn_blocking({
            let arguments = [from_url.clone(), from.clone(), to_url.clone(), to.clone()];
            move || {
                let [from_url, from, to_url, to] = &arguments;
                run(example("relay", "", &[from_url, from, to_url, to, "--idle", "8"])?)
            }
        });
        let said = said.await??;
        assert_eq!(said, format!("moved {}, dead letters 0, expired 0\n", messages()));
        let target = anyqueue::connect(to_url).await?;
        received(&target, &to).await?;
        for (client, name) in [(source, from), (target, to)] {
            client.delete(&*name).await?;
            client.close(Duration::from_secs(5)).await;
        }
        Ok(())
    })
}

/// Every message is there, with all that it had, each key in order.
async fn received(client: &Client, queue: &str) -> Outcome {
    let opening = || client.receiver(queue).discard_dead_letters();
    let mut inbox = match opening().ordering(Ordering::PerKey).await {
        Ok(inbox) => inbox,
        // One receiver of a queue is in order without a word.
        Err(_) => opening().await?,
    };
    let mut next: HashMap<String, usize> = HashMap::new();
    let mut seen = std::collections::HashSet::new();
    while seen.len() < messages() {
        let delivery = timeout(PATIENCE, inbox.receive()).await??;
        let number = usize::try_from(delivery.headers().get("number").and_then(|n| n.as_int()).ok_or("no number")?)?;
        let expected = message(number);
        let key = String::from_utf8_lossy(delivery.get_key().ok_or("no key")?).into_owned();
        assert_eq!(delivery.payload(), expected.payload());
        assert_eq!((delivery.get_key(), delivery.get_id()), (expected.get_key(), expected.get_id()));
        assert_eq!(delivery.get_content_type(), expected.get_content_type());
        assert_eq!(delivery.headers().get("text").and_then(|text| text.as_str()), Some("grüße"));
        if seen.insert(number) {
            let next = next.entry(key).or_default();
            assert_eq!(number / KEYS, *next, "the order of a key");
            *next += 1;
        }
        delivery.ack();
    }
    inbox.flush().await?;
    Ok(())
}

/// What the other broker cannot have is a dead letter of the first, and the program says so; so does one that finds nothing.
pub(crate) fn tells(urls: &[String]) -> Outcome {
    let [from_url, to_url] = urls else { return Err("two brokers".into()) };
    let run_id = SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros();
    let (from, to) = (format!("relay-told-{run_id}"), format!("relay-told-to-{run_id}"));
    let relay = |from: &str| example("relay", "", &[from_url, from, to_url, &to, "--idle", "3"]);
    let (_, why) = failed(relay(&from)?)?;
    assert!(why.contains("no queue") && why.contains(&from), "{why}");
    block_on(async {
        let source = anyqueue::connect(from_url).await?;
        let sender = source.sender(&*from).await?;
        sender.send(message(7).ttl(PATIENCE)).await?;
        sender.send(Message::new(vec![0; 2 << 20])).await?;
        Ok(())
    })?;
    let (said, _) = failed(relay(&from)?)?;
    assert_eq!(said, "moved 1, dead letters 1, expired 0\n");
    block_on(async {
        let (source, target) = (anyqueue::connect(from_url).await?, anyqueue::connect(to_url).await?);
        let moved = timeout(PATIENCE, target.receiver(&*to).await?.receive()).await??;
        let expected = message(7);
        assert_eq!((moved.payload(), moved.get_key(), moved.get_ttl()), (expected.payload(), expected.get_key(), None));
        assert_eq!((moved.get_id(), moved.get_content_type()), (expected.get_id(), expected.get_content_type()));
        assert_eq!(moved.headers().get("text"), expected.headers().get("text"));
        moved.ack_confirmed().await?;
        let letter =
            timeout(PATIENCE, source.receiver(format!("{from}-dlq")).discard_dead_letters().await?.receive()).await??;
        assert_eq!(letter.payload().len(), 2 << 20);
        letter.ack_confirmed().await?;
        for (client, names) in
            [(&source, [from.clone(), format!("{from}-dlq")]), (&target, [to.clone(), format!("{to}-dlq")])]
        {
            for name in names {
                client.delete(&*name).await?;
            }
        }
        Ok(())
    })
}

pub(crate) fn wrong(_: &[String]) -> Outcome {
    let from_to = ["memory://", "a", "memory://", "b"];
    for (arguments, why) in [
        (&["memory://"][..], "usage: relay"),
        (&["a", "b", "c", "d", "e"], "usage: relay"),
        (&[&from_to[..], &["--idle", "0"]].concat(), "--idle takes whole seconds"),
        (&[&from_to[..], &["--fast"]].concat(), "unknown option --fast"),
        (&["memory://", "a", "memory://", "a"], "that is from one place to the same"),
        (&["memory://", "topic:a", "memory://", "b"], "a topic needs a --group"),
    ] {
        let said = refused(example("relay", "", arguments)?)?;
        assert!(said.starts_with(why), "{said}");
    }
    let mut no_text = example("relay", "", &["memory://", "a", "memory://"])?;
    no_text.arg(OsStr::from_bytes(b"\xff"));
    assert!(refused(no_text)?.ends_with(" is no text\n"));
    let (_, said) = failed(example("relay", "", &["memory://", "a", "amqp://127.0.0.1:1", "b"])?)?;
    assert!(said.contains("Connection refused") && said.lines().count() == 1, "{said}");
    Ok(())
}
