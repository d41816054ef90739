//! The smallest programs, and those of Python beside them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use crate::process::{Running, example, python, refused, run};
use crate::{Outcome, block_on};

/// Deletes what earlier runs left; the names are those of the well-known programs.
fn clean(url: &str, addresses: &'static [&str]) -> Outcome {
    block_on(async {
        let client = anyqueue::connect(url).await?;
        for address in addresses {
            client.delete(*address).await?;
        }
        client.close(Duration::from_secs(5)).await;
        Ok(())
    })
}

/// Beside the program of the tutorials, whose queue is taken as it is.
pub(crate) fn rabbitmq(urls: &[String]) -> Outcome {
    beside_pika(&urls[0], "plain")
}

/// From 4.3 on, what the tutorials declare is refused by the server.
pub(crate) fn rabbitmq4(urls: &[String]) -> Outcome {
    beside_pika(&urls[0], "durable")
}

fn beside_pika(url: &str, queue: &str) -> Outcome {
    const WAITING: &str = " [*] Waiting for messages. To exit press CTRL+C";
    clean(url, &["hello", "hello-dlq"])?;
    let ours = |arguments: &[&str]| example("hello_rabbitmq", url, arguments);
    let theirs = |queue: &str, arguments: &[&str]| python("hello_rabbitmq.py", &[&[url, queue], arguments].concat());

    let receiving = Running::start(theirs(queue, &["receive"])?)?;
    assert_eq!(receiving.line()?, WAITING);
    assert_eq!(run(ours(&["send"])?)?, " [x] Sent 'Hello World!'\n");
    assert_eq!(receiving.line()?, " [x] Received Hello World!");
    drop(receiving);

    let receiving = Running::start(ours(&["receive"])?)?;
    assert_eq!(receiving.line()?, WAITING);
    assert_eq!(run(theirs(queue, &["send", "from pika"])?)?, " [x] Sent 'from pika'\n");
    assert_eq!(receiving.line()?, " [x] Received from pika");
    receiving.interrupt()?;

    // Where ours was there first, the queue is what the library makes, and pika takes it as it is.
    clean(url, &["hello", "hello-dlq"])?;
    let receiving = Running::start(ours(&["receive"])?)?;
    assert_eq!(receiving.line()?, WAITING);
    run(theirs("passive", &["send", "to what is there"])?)?;
    assert_eq!(receiving.line()?, " [x] Received to what is there");
    receiving.interrupt()?;
    clean(url, &["hello", "hello-dlq"])
}

pub(crate) fn kafka(urls: &[String]) -> Outcome {
    let url = &*urls[0];
    let server = url.strip_prefix("kafka://").and_then(|rest| rest.split(['/', '?']).next()).ok_or("no server")?;
    clean(url, &["topic:test_topic"])?;
    let ours = |arguments: &[&str]| example("hello_kafka", url, arguments);
    let theirs = |arguments: &[&str]| python("hello_kafka.py", &[&[server], arguments].concat());

    assert_eq!(run(ours(&["send", "user-7", "from anyqueue"])?)?, "sent key=user-7 value=from anyqueue\n");
    assert_eq!(run(theirs(&["send", "user-8", "from kafka-python"])?)?, "sent key=user-8 value=from kafka-python\n");
    let (receiving, beside) = (Running::start(ours(&["receive"])?)?, Running::start(theirs(&["receive"])?)?);
    let two = |running: &Running| Outcome::Ok(BTreeSet::from([running.line()?, running.line()?]));
    let (lines, expected) = (two(&receiving)?, two(&beside)?);
    assert_eq!(lines, expected);
    assert!(
        lines.iter().any(|line| line.starts_with("test_topic:") && line.ends_with(": key=user-7 value=from anyqueue"))
    );
    receiving.interrupt()?;
    drop(beside);
    clean(url, &["topic:test_topic"])
}

pub(crate) fn sqs(urls: &[String]) -> Outcome {
    let url = &*urls[0];
    let server = url.strip_prefix("sqs://").and_then(|rest| rest.split(['/', '?']).next()).ok_or("no server")?;
    let endpoint = format!("http://{server}");
    clean(url, &["test_queue", "test_queue-dlq"])?;
    let ours = |arguments: &[&str]| example("hello_sqs", url, arguments);
    let theirs = |arguments: &[&str]| python("hello_sqs.py", &[&[&*endpoint], arguments].concat());

    let begun = Instant::now();
    let said = run(ours(&["send"])?)?;
    let queue = said.lines().next().unwrap_or_default();
    assert!(queue.starts_with("http") && queue.ends_with("/test_queue"), "{said}");
    assert!(said.contains("sent 'Hello World!' as "), "{said}");
    // It is created with the same attributes, else boto3 would be refused.
    let receiving = Running::start(theirs(&["receive"])?)?;
    assert_eq!(receiving.line()?, queue);
    assert_eq!(receiving.line()?, "received 'Hello World!'");
    assert!(begun.elapsed() >= Duration::from_secs(4), "it was not delayed: {:?}", begun.elapsed());
    drop(receiving);

    let receiving = Running::start(ours(&["receive"])?)?;
    receiving.line()?;
    assert!(run(theirs(&["send", "from boto3"])?)?.contains("sent 'from boto3' as "));
    assert_eq!(receiving.line()?, "received 'from boto3'");
    receiving.interrupt()?;
    clean(url, &["test_queue", "test_queue-dlq"])
}

pub(crate) fn wrong(_: &[String]) -> Outcome {
    for name in ["hello_rabbitmq", "hello_kafka", "hello_sqs"] {
        for arguments in [&[][..], &["sand"], &["receive", "twice"]] {
            let said = refused(example(name, "nonsense://", arguments)?)?;
            assert!(said.starts_with(&format!("usage: {name} send")), "{said}");
        }
        let mut no_text = example(name, "nonsense://", &["send"])?;
        no_text.arg(OsStr::from_bytes(b"\xff"));
        assert!(refused(no_text)?.starts_with("usage: "), "{name}");
    }
    Ok(())
}
