//! The same with Java's client, by the command line programs that come with the broker.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;

use queue_core::{ConsumerOptions, HeaderValue, Message};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Duration, Instant, timeout};

use crate::common::{Rig, in_secs, numbered, receive, text, url};
use crate::members::work;
use crate::partitions::{PARTITIONS, partitions};

const PATIENCE: Duration = Duration::from_secs(240);
const PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
const CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";

/// Starts a class on a topic. It ends by itself: what the script starts does not end with it.
fn start(class: &str, topic: &str, arguments: &[&str]) -> Child {
    let url = url().unwrap();
    let server = url.trim_start_matches("kafka://").split('?').next().unwrap();
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/brokers"));
    command.args(["tool", "kafka", class, "--bootstrap-server", server, "--topic", topic]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Sends lines of headers, key and value, with tabs between; `NULL` is none.
async fn send(topic: &str, lines: &str) {
    let arguments = [
        "--reader-property",
        "parse.key=true",
        "--reader-property",
        "parse.headers=true",
        "--reader-property",
        "null.marker=NULL",
    ];
    let mut producer = start(PRODUCER, topic, &arguments);
    producer.stdin.take().unwrap().write_all(lines.as_bytes()).await.unwrap();
    let ended = timeout(PATIENCE, producer.wait()).await.expect("the producer ends").unwrap();
    assert!(ended.success(), "{ended}");
}

/// Receives so many messages, a line each.
async fn received(topic: &str, arguments: &[&str], count: usize) -> Vec<String> {
    let count = count.to_string();
    let arguments: Vec<_> = ["--max-messages", &count].iter().chain(arguments).copied().collect();
    let consumer = start(CONSUMER, topic, &arguments);
    let output = timeout(PATIENCE, consumer.wait_with_output()).await.expect("the consumer ends").unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

pub(crate) async fn a_key_goes_to_the_partition_that_java_chooses() {
    let rig = Rig::new(PARTITIONS).await;
    let keys: Vec<_> = (0..500).map(|i| format!("{}{i}", "ü-".repeat(i % 5))).collect();
    let lines: String = keys.iter().map(|key| format!("NULL\t{key}\tx\n")).collect();
    send(rig.queue.name(), &lines).await;
    let mut options = ConsumerOptions::default();
    options.prefetch = keys.len();
    let there = receive(&*rig.consumer_with(options).await, keys.len()).await;
    let key_of = |message: &Message| String::from_utf8(message.get_key().unwrap().to_vec()).unwrap();
    let theirs: BTreeMap<_, _> =
        there.iter().map(|r| (key_of(r.message.as_ref().unwrap()), r.position.partition.unwrap())).collect();
    let ours = partitions(&rig, keys.iter().map(|key| Message::new("x").key(key.clone())).collect()).await;
    assert_eq!(theirs, keys.into_iter().zip(ours).collect());
    assert_eq!(theirs.into_values().collect::<BTreeSet<_>>(), (0..PARTITIONS).collect());
    rig.end().await;
}

pub(crate) async fn records_are_the_same_for_java_and_here() {
    let rig = Rig::new(1).await;
    send(rig.queue.name(), "b:1,a:ü,b:NULL\tk\tgrüße\nNULL\tgone\tNULL\nNULL\tNULL\t\n").await;
    let mut messages = receive(&*rig.consumer().await, 3).await.into_iter().map(|r| r.message.unwrap());
    let first = messages.next().unwrap();
    assert_eq!((first.text(), first.get_key().unwrap().as_ref()), (Some("grüße"), &b"k"[..]));
    let headers = [("b", HeaderValue::from("1")), ("a", "ü".into()), ("b", HeaderValue::Null)];
    assert_eq!(first.headers(), &headers.into_iter().collect());
    assert!(messages.next().unwrap().is_tombstone());
    let last = messages.next().unwrap();
    assert_eq!((last.text(), last.get_key(), last.is_tombstone()), (Some(""), None, false));

    let message = Message::new("grüße").key("k").header("b", "1").header("a", "ü").header("b", HeaderValue::Null);
    rig.send(vec![message.id("i"), Message::tombstone("gone")]).await;
    let print = ["print.key=true", "print.headers=true", "print.offset=true", "null.literal=NULL"];
    let print = print.iter().flat_map(|property| ["--formatter-property", property]);
    let arguments: Vec<_> = ["--partition", "0", "--offset", "3"].into_iter().chain(print).collect();
    let seen = received(rig.queue.name(), &arguments, 2).await;
    let expected = ["Offset:3\tb:1,a:ü,b:NULL,anyqueue-h:#ii;0.1.2.\tk\tgrüße", "Offset:4\tNO_HEADERS\tgone\tNULL"];
    assert_eq!(seen, expected);
    rig.end().await;
}

pub(crate) async fn java_with_its_defaults_shares_a_group() {
    let rig = Rig::new(4).await;
    let name = rig.queue.name();
    let consumer = rig.consumer().await;
    let (mut here, mut there) = (BTreeMap::new(), BTreeSet::new());
    // Ends when it gets nothing more.
    let mut java = start(CONSUMER, name, &["--group", name, "--timeout-ms", "10000"]);
    let mut lines = BufReader::new(java.stdout.take().unwrap()).lines();
    let mut sent = 0;
    let deadline = in_secs(60);
    while there.len() < 50 {
        assert!(Instant::now() < deadline, "{} of {sent} here, {} there", here.len(), there.len());
        rig.send(numbered(sent..sent + 40)).await;
        sent += 40;
        tokio::select! {
            line = lines.next_line() => drop(there.insert(line.unwrap().expect("Java has ended"))),
            () = work(&*consumer, &mut here) => {}
        }
    }
    println!("{sent} sent, {} here, {} there so far", here.len(), there.len());
    // The group is whole again here when the other has left, with what that did not get to.
    let mut ended = false;
    while !ended || here.keys().chain(&there).collect::<BTreeSet<_>>().len() < sent as usize {
        assert!(in_secs(0) < deadline + PATIENCE, "{} of {sent} here, {} there", here.len(), there.len());
        tokio::select! {
            line = lines.next_line(), if !ended => match line.unwrap() {
                Some(line) => drop(there.insert(line)),
                None => ended = true,
            },
            () = work(&*consumer, &mut here) => {}
        }
    }
    java.wait().await.unwrap();
    rig.send(numbered(sent..sent + 40)).await;
    here.clear();
    while here.len() < 40 {
        assert!(in_secs(0) < deadline + PATIENCE, "{} of 40 after Java has left", here.len());
        work(&*consumer, &mut here).await;
    }
    consumer.close(in_secs(10)).await;
    rig.end().await;
}

pub(crate) async fn java_goes_on_where_a_receiver_was_and_the_other_way_round() {
    let rig = Rig::new(1).await;
    let name = rig.queue.name();
    rig.send(numbered(0..10)).await;
    let consumer = rig.consumer().await;
    let got = receive(&*consumer, 4).await;
    // With something beyond the position, which Java reads over.
    consumer.ack(&[got[0].token, got[1].token, got[3].token]);
    consumer.close(in_secs(10)).await;
    assert_eq!(received(name, &["--group", name], 5).await, ["2", "3", "4", "5", "6"]);
    let consumer = rig.consumer().await;
    let rest: Vec<_> = receive(&*consumer, 3).await.iter().map(text).collect();
    assert_eq!(rest, ["7", "8", "9"]);
    consumer.close(in_secs(10)).await;
    rig.end().await;
}
