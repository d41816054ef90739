//! The rights that `docs/amqp.md` names are enough, and none of them is too many.
//!
//! Users are made by the management API, at the server's port + 10000.

mod common;

use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use queue_amqp::DRIVER;
use queue_core::{Address, Client, Declare, Endpoint, Entry, Error, ErrorKind, Message, Receiver, Source, Topology};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::common::{Case, PATIENCE, run_on_each, soon, unique};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/amqp.md");
/// The queue, topic and group in the page's patterns.
const NAMES: (&str, &str) = ("orders", "billing");

fn main() {
    macro_rules! cases {
        ($($name:ident),* $(,)?) => { vec![$(Case(stringify!($name), |url| $name(url).boxed_local())),*] };
    }
    run_on_each(cases![each_way_of_use_needs_the_rights_that_the_page_names]);
}

/// One row of the page: what is done, and the patterns for configure, write and read.
struct Row {
    what: String,
    rights: [String; 3],
}

fn rows(page: &str) -> Vec<Row> {
    let section = page.split("\n## Rights\n").nth(1).expect("a section on rights");
    let section = section.split("\n## ").next().unwrap_or_default();
    let table = section.lines().filter(|line| line.starts_with("| ") && !line.contains("---")).skip(1);
    table
        .map(|line| {
            // In a table a bar is escaped.
            let line = line.replace("\\|", "\u{1}");
            let cells: Vec<_> = line.trim_matches('|').split('|').map(|c| c.trim().replace('\u{1}', "|")).collect();
            let pattern =
                |n: usize| if cells[n] == "–" { String::new() } else { cells[n].trim_matches('`').to_owned() };
            Row { what: cells[0].clone(), rights: [pattern(1), pattern(2), pattern(3)] }
        })
        .collect()
}

async fn each_way_of_use_needs_the_rights_that_the_page_names(url: String) {
    let page = std::fs::read_to_string(Path::new(PAGE)).unwrap();
    let rows = rows(&page);
    assert_eq!(rows.len(), 8, "each row has its way of use below");
    for row in rows {
        let allowed = attempt(&url, &row.what, &row.rights).await;
        assert!(allowed.is_ok(), "{}: {allowed:?}", row.what);
        for right in (0..3).filter(|n| !row.rights[*n].is_empty()) {
            // Each alternative of a pattern by itself.
            let names = alternatives(&row.rights[right]);
            for left_out in 0..names.len() {
                let mut less = row.rights.clone();
                let kept: Vec<_> = (0..names.len()).filter(|n| *n != left_out).map(|n| names[n].as_str()).collect();
                less[right] = if kept.is_empty() { String::new() } else { format!("^({})$", kept.join("|")) };
                let refused = attempt(&url, &row.what, &less).await;
                let what = format!("{} without {} in {less:?}", row.what, names[left_out]);
                let Err(error) = refused else { panic!("{what} works") };
                assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what}: {error:?}");
            }
        }
    }
}

/// `^a$` or `^(a|b)$`.
fn alternatives(pattern: &str) -> Vec<String> {
    let inside = pattern.trim_start_matches('^').trim_end_matches('$');
    inside.trim_start_matches('(').trim_end_matches(')').split('|').map(str::to_owned).collect()
}

/// Does it as a user who has these rights and no others.
async fn attempt(url: &str, what: &str, rights: &[String; 3]) -> Result<(), Error> {
    let name = unique("rights");
    let admin = connect(url, "").await.unwrap();
    let [configure, write, read] = rights.each_ref().map(|pattern| pattern.replace(NAMES.0, &name));
    api(url, "PUT", &format!("/api/users/{name}"), r#"{"password": "secret", "tags": ""}"#).await;
    let body = serde_json::json!({"configure": configure, "write": write, "read": read}).to_string();
    api(url, "PUT", &format!("/api/permissions/%2F/{name}"), &body).await;
    let hosts = url.rsplit_once('@').unwrap().1;
    let user = format!("amqp://{name}:secret@{hosts}");
    let done = soon(use_it(&admin, &user, what, &name)).await;
    let topic = Address::topic(&name).unwrap();
    let queue = Address::queue(&name).unwrap();
    let group = Source::new(topic.clone()).with_group(NAMES.1).unwrap().queue_name().unwrap();
    let group = Address::derived(queue_core::AddressKind::Queue, &group);
    for address in [queue.dead_letter(), queue, group.dead_letter(), group, topic] {
        admin.delete(address).await.unwrap();
    }
    api(url, "DELETE", &format!("/api/users/{name}"), "").await;
    admin.close(PATIENCE).await;
    done
}

async fn connect(url: &str, options: &str) -> Result<Client, Error> {
    Client::connect_with(&format!("{url}{options}"), &[DRIVER]).await
}

async fn use_it(admin: &Client, user: &str, what: &str, name: &str) -> Result<(), Error> {
    let topic = format!("topic:{name}");
    let billing = NAMES.1;
    match what {
        "send to a queue" => {
            declare(admin, &[Entry::new(Address::queue(name)?)]).await;
            let sender = connect(user, "").await?.sender(name).declare(Declare::Assume).await?;
            sender.send("x").await?;
        }
        "send to a queue with a delay" => {
            declare(admin, &[Entry::new(Address::queue(name)?)]).await;
            let sender = connect(user, "").await?.sender(name).declare(Declare::Assume).await?;
            sender.send(Message::new("x").delay(Duration::from_millis(100))).await?;
        }
        "send to a topic" => {
            declare(admin, &[Entry::new(Address::topic(name)?)]).await;
            let sender = connect(user, "").await?.sender(topic.as_str()).declare(Declare::Assume).await?;
            sender.send("x").await?;
        }
        "receive from a queue" | "receive from a queue, `delay_queues=false`" => {
            let queue = Address::queue(name)?;
            declare(admin, &[Entry::new(queue.clone()), Entry::new(queue.dead_letter())]).await;
            admin.sender(name).await?.send("x").await?;
            let options = if what.ends_with("false`") { "?delay_queues=false" } else { "" };
            let client = connect(user, options).await?;
            let receiver = client.receiver(name).declare(Declare::Assume).await?;
            handle(&client, receiver, 2).await?;
        }
        "receive from a topic without a group" => {
            declare(admin, &[Entry::new(Address::topic(name)?)]).await;
            let client = connect(user, "").await?;
            let receiver = client.receiver(topic.as_str()).declare(Declare::Assume).discard_dead_letters();
            let receiver = receiver.await?;
            admin.sender(topic.as_str()).await?.send("x").await?;
            handle(&client, receiver, 1).await?;
        }
        "create a queue and its dead letters" => {
            let queue = Address::queue(name)?;
            let mut entry = Entry::new(queue.clone());
            entry.dead_letter = Some(queue.dead_letter());
            let entries = [Entry::new(queue.dead_letter()), entry];
            connect(user, "").await?.declare(&Topology::from_iter(entries)).await?;
        }
        "create a topic and a group" => {
            let group = Source::new(Address::topic(name)?).with_group(billing)?;
            let entries = [Entry::new(Address::topic(name)?), Entry::from(&group)];
            connect(user, "").await?.declare(&Topology::from_iter(entries)).await?;
        }
        other => panic!("no such way of use: {other}"),
    }
    Ok(())
}

async fn declare(admin: &Client, entries: &[Entry]) {
    admin.declare(&Topology::from_iter(entries.to_vec())).await.unwrap();
}

/// Retries up to the last attempt, and rejects that; with what goes wrong behind the handles meanwhile.
async fn handle(client: &Client, mut receiver: Receiver, last: u32) -> Result<(), Error> {
    let mut events = client.events();
    let end = Instant::now() + PATIENCE;
    for attempt in 1..=last {
        let delivery = tokio::select! {
            delivery = receiver.receive() => delivery?,
            error = failure(&mut events) => return Err(error),
        };
        assert_eq!(delivery.attempt(), attempt);
        if attempt < last {
            delivery.retry_after(Duration::from_millis(100))
        } else {
            delivery.reject("no")
        };
    }
    while receiver.close(Duration::from_millis(200)).await.unanswered > 0 {
        if let Ok(error) = timeout(Duration::from_millis(200), failure(&mut events)).await {
            return Err(error);
        }
        assert!(Instant::now() < end, "not in time");
        sleep(Duration::from_millis(50)).await;
    }
    match failure(&mut events).now_or_never() {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

async fn failure(events: &mut queue_core::EventStream) -> Error {
    loop {
        let event = soon(events.next()).await.expect("the client is open");
        if let Some(error) = event.error.filter(|e| e.kind() == ErrorKind::Unauthorized) {
            return error;
        }
    }
}

/// Calls the management API.
async fn api(url: &str, method: &str, path: &str, body: &str) {
    let endpoint: Endpoint = url.parse().unwrap();
    let host = &endpoint.hosts[0];
    let mut stream = TcpStream::connect((host.name.as_str(), host.port.unwrap_or(5672) + 10_000)).await.unwrap();
    let length = body.len();
    // guest, guest
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
}
