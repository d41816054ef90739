//! The rights that `docs/sqs.md` names are enough, and none of them is too many.
//!
//! The broker of the tests knows no rights: a proxy before it refuses what is not allowed, in Amazon's words.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use queue_core::{Address, Client, Declare, Entry, Error, ErrorKind, EventKind, Message, Source, Topology};
use queue_sqs::DRIVER;
use serde_json::Value;

#[path = "support/proxy.rs"]
mod proxy;
mod support;
#[path = "support/table.rs"]
mod table;
use proxy::Proxy;
use support::*;

/// The queues that the page names, and where they are.
const NAMES: [&str; 2] = ["orders", "orders-dlq"];
const ARN: &str = "arn:aws:sqs:eu-west-1:123456789012:";
/// What is asked for where it is granted, and what is done without it elsewhere.
const TOLERATED: [&str; 2] = ["ListQueues", "GetQueueAttributes"];
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    support::main(cases![
        each_way_of_use_needs_the_rights_that_the_page_names,
        the_policies_on_the_page_grant_what_its_table_says,
    ]);
}

/// Actions on the queue and on that of its dead letters.
type Rights = table::Rights<2>;

async fn each_way_of_use_needs_the_rights_that_the_page_names() -> Outcome {
    let rows = table::rows(table::section("Rights"));
    assert_eq!(rows.len(), 13, "each row has its way of use below");
    for (what, rights) in rows {
        let (done, refused) = attempt(what, &rights).await?;
        assert!(done.is_ok(), "{what}: {done:?}");
        let beyond: Vec<_> = refused.iter().filter(|action| !TOLERATED.contains(&action.as_str())).collect();
        assert!(beyond.is_empty(), "{what} asks for {beyond:?}, and works without");
        for queue in 0..2 {
            for left_out in &rights[queue] {
                let mut less = rights.clone();
                less[queue].remove(left_out);
                let what = format!("{what} without {left_out} on {}", NAMES[queue]);
                let Err(error) = attempt(what.split(" without ").next().unwrap_or_default(), &less).await?.0 else {
                    panic!("{what} works")
                };
                assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what}: {error:?}");
            }
        }
    }
    Ok(())
}

async fn the_policies_on_the_page_grant_what_its_table_says() -> Outcome {
    let section = table::section("Rights");
    let rows: BTreeMap<_, Rights> = table::rows(section).into_iter().collect();
    let policies: Vec<Value> = section
        .split("```json\n")
        .skip(1)
        .map(|block| serde_json::from_str(block.split("```").next().unwrap_or_default()))
        .collect::<Result<_, _>>()?;
    let modes: [&[&str]; 3] = [
        &["send, `declare = assume`"],
        &["receive, `declare = assume`"],
        &["create a queue and its dead letters", "send, `declare = assume`", "receive, `declare = assume`"],
    ];
    assert_eq!(policies.len(), modes.len());
    for (policy, mode) in policies.iter().zip(modes) {
        let mut granted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for statement in policy["Statement"].as_array().ok_or("no statements")? {
            assert_eq!(statement["Effect"], "Allow");
            let list = |name: &str| -> Vec<String> {
                let one = &statement[name];
                let all = one.as_array().cloned().unwrap_or_else(|| vec![one.clone()]);
                all.iter().filter_map(Value::as_str).map(str::to_owned).collect()
            };
            for resource in list("Resource") {
                let queue = resource.strip_prefix(ARN).ok_or("another resource")?.to_owned();
                let actions = list("Action");
                granted.entry(queue).or_default().extend(actions.iter().map(|a| a.replacen("sqs:", "", 1)));
            }
        }
        let needed = NAMES.iter().enumerate().map(|(queue, name)| {
            let all: BTreeSet<_> = mode.iter().flat_map(|row| rows[row][queue].clone()).collect();
            ((*name).to_owned(), all)
        });
        let needed: BTreeMap<_, _> = needed.filter(|(_, actions)| !actions.is_empty()).collect();
        assert_eq!(granted, needed, "{mode:?}");
    }
    Ok(())
}

/// Does it as somebody who has these rights and no others; what came of it, and what was refused.
async fn attempt(what: &str, rights: &Rights) -> Result<(Result<(), Error>, BTreeSet<String>), Failure> {
    let admin = Client::connect_with(&format!("{}{QUICK}", url()), &[DRIVER]).await?;
    let queue = fresh("rights");
    let allowed = [queue.clone(), queue.dead_letter()].into_iter().zip(rights.clone());
    let allowed = allowed.map(|(address, actions)| (address.name().to_owned(), actions)).collect();
    let proxy = Proxy::start(&url(), allowed).await?;
    let user = Client::connect_with(&format!("{}{QUICK}", proxy.url()), &[DRIVER]).await?;
    let done = tokio::time::timeout(PATIENCE, use_it(&admin, &user, what, &queue)).await;
    let done = done.map_err(|_| format!("{what}: neither done nor refused with {rights:?}"))?;
    user.close(PATIENCE).await;
    for address in [queue.clone(), queue.dead_letter()] {
        admin.delete(address).await?;
    }
    admin.close(PATIENCE).await;
    Ok((done, proxy.refused()))
}

async fn use_it(admin: &Client, user: &Client, what: &str, queue: &Address) -> Result<(), Error> {
    let mut entry = Entry::new(queue.clone());
    entry.dead_letter = Some(queue.dead_letter());
    let both = Topology::from_iter([Entry::new(queue.dead_letter()), entry.clone()]);
    let mut tagged = Entry::new(queue.clone());
    tagged.native.insert("tag.team".to_owned(), "billing".to_owned());
    if what.starts_with("create") {
        let entry = if what.ends_with("tags") { Topology::from_iter([tagged]) } else { both };
        return user.declare(&entry).await;
    }
    tagged.native.insert("VisibilityTimeout".to_owned(), "17".to_owned());
    tagged.dead_letter = entry.dead_letter;
    admin.declare(&Topology::from_iter([tagged.clone()])).await?;
    tagged.dead_letter = None;
    match what {
        "send, `declare = assume`" => send(user, queue.clone()).await,
        "send to its URL, `declare = assume`" => send(user, by_url(admin, queue).await?).await,
        "receive, `declare = assume`" => receive(admin, user, queue, queue.clone()).await,
        "receive from its URL, `declare = assume`" => receive(admin, user, queue, by_url(admin, queue).await?).await,
        "receive what is delayed for longer than 15 minutes, `declare = assume`" => hop(user, queue).await,
        "put dead letters back" => redrive(admin, user, queue).await,
        "verify a queue" => user.verify(&Topology::from_iter([Entry::new(queue.clone())])).await,
        "verify a queue with options and tags" => user.verify(&Topology::from_iter([tagged])).await,
        "`stats`" => user.stats(&Source::new(queue.clone())).await.map(drop),
        "`purge`" => user.purge(queue).await,
        "`delete`" => user.delete(queue).await,
        other => panic!("nobody knows how to {other}"),
    }
}

async fn by_url(admin: &Client, queue: &Address) -> Result<Address, Error> {
    let client: &aws_sdk_sqs::Client = admin.broker().native().downcast_ref().expect("the client of the SDK");
    let found = client.get_queue_url().queue_name(queue.name()).send().await.expect("the queue is there");
    found.queue_url.unwrap_or_default().parse()
}

async fn send(user: &Client, to: Address) -> Result<(), Error> {
    let sender = user.sender(to).declare(Declare::Assume).deadline(Duration::from_secs(3)).await?;
    sender.send("x").await.map(drop)
}

/// Acknowledges a message, has one tried again, and rejects it.
async fn receive(admin: &Client, user: &Client, queue: &Address, from: Address) -> Result<(), Error> {
    admin.sender(queue).await?.send_batch(["a", "b"]).await.expect("the administrator may send");
    let mut events = user.events();
    let mut receiver = user.receiver(from).declare(Declare::Assume).await?;
    receiver.receive().await?.ack_confirmed().await?;
    receiver.receive().await?.retry_after(Duration::from_secs(1));
    receiver.flush().await?;
    receiver.receive().await?.reject("no");
    let dead = Source::new(queue.dead_letter());
    loop {
        tokio::select! {
            Some(event) = events.next() => if let (EventKind::DeadLetterFailed, Some(error)) = (event.kind, event.error) {
                return Err(error);
            },
            () = tokio::time::sleep(Duration::from_millis(50)) => if admin.stats(&dead).await?.ready == Some(1) {
                break;
            },
        }
    }
    receiver.flush().await
}

/// Receives what comes by hops.
async fn hop(user: &Client, queue: &Address) -> Result<(), Error> {
    let sender =
        Client::connect_with(&format!("{}{QUICK}&delay_hops=1s", url()), &[DRIVER]).await?.sender(queue).await?;
    sender.send(Message::new("x").delay(Duration::from_millis(1500))).await?;
    let mut events = user.events();
    let mut receiver = user.receiver(queue).declare(Declare::Assume).discard_dead_letters().await?;
    loop {
        tokio::select! {
            Some(event) = events.next() => if let (EventKind::AnswerFailed, Some(error)) = (event.kind, event.error) {
                return Err(error);
            },
            delivery = receiver.receive() => return delivery?.ack_confirmed().await.map(drop),
        }
    }
}

/// Has a message die, and puts it back.
async fn redrive(admin: &Client, user: &Client, queue: &Address) -> Result<(), Error> {
    admin.sender(queue).await?.send("x").await?;
    let mut receiver = admin.receiver(queue).await?;
    receiver.receive().await?.reject("no");
    receiver.flush().await?;
    let redriven = user.redrive(queue).idle(Duration::from_secs(2)).await?;
    if let Some(error) = redriven.stopped {
        return Err(error);
    }
    assert_eq!(redriven.moved, 1);
    Ok(())
}
