//! The rights that `docs/sqs.md` names for topics are enough, and none of them is too many.

use std::collections::BTreeSet;
use std::time::Duration;

use queue_core::{Client, Declare, Entry, Error, ErrorKind, Source, Topology};
use queue_sqs::DRIVER;
use tokio::time::timeout;

mod endpoint;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "support/table.rs"]
mod table;

use endpoint::Endpoint;
use proxy::{Allowed, Proxy};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TOPIC: &str = "topic:orders";
/// The same by its ARN, as somebody else addresses it.
const ARN: &str = "topic:arn:aws:sns:us-east-1:000000000000:orders";
/// The topic and the queue that the page names, and what stands for those of which IAM knows no name.
const NAMES: [&str; 3] = ["orders", "orders--billing", "*"];
/// What is asked for where it is granted, and what is done without it elsewhere.
const TOLERATED: [&str; 3] = ["ListQueues", "ListTopics", "GetTopicAttributes"];
const PATIENCE: Duration = Duration::from_secs(10);

/// Actions on each of them.
type Rights = table::Rights<3>;

#[tokio::test]
async fn each_way_to_use_topics_needs_the_rights_that_the_page_names() -> Result<(), Failure> {
    let rows = table::rows(table::section("Topics"));
    assert_eq!(rows.len(), 12, "each row has its way of use below");
    for (what, rights) in rows {
        let (done, refused) = attempt(what, &rights).await?;
        assert!(done.is_ok(), "{what}: {done:?}");
        let beyond: Vec<_> = refused.iter().filter(|action| !TOLERATED.contains(&action.as_str())).collect();
        assert!(beyond.is_empty(), "{what} asks for {beyond:?}, and works without");
        for on in 0..NAMES.len() {
            for left_out in &rights[on] {
                let mut less = rights.clone();
                less[on].remove(left_out);
                let Err(error) = attempt(what, &less).await?.0 else {
                    panic!("{what} works without {left_out} on {}", NAMES[on])
                };
                assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what} without {left_out}: {error:?}");
            }
        }
    }
    Ok(())
}

/// Does it as somebody who has these rights and no others; what came of it, and what was refused.
async fn attempt(what: &str, rights: &Rights) -> Result<(Result<(), Error>, BTreeSet<String>), Failure> {
    let endpoint = Endpoint::start().await?;
    let broker = endpoint.url("&wait_time=1s");
    let admin = Client::connect_with(&broker, &[DRIVER]).await?;
    let allowed: Allowed = NAMES.iter().map(|name| (*name).to_owned()).zip(rights.clone()).collect();
    let proxy = Proxy::start(&broker, allowed).await?;
    let user = Client::connect_with(proxy.url(), &[DRIVER]).await?;
    let done = timeout(PATIENCE, use_it(&admin, &user, what)).await;
    let done = done.map_err(|_| format!("{what}: neither done nor refused with {rights:?}"))?;
    Ok((done, proxy.refused()))
}

async fn use_it(admin: &Client, user: &Client, what: &str) -> Result<(), Error> {
    let mut entry = Entry::new(TOPIC.parse()?);
    entry.group = Some("billing".into());
    let group = Topology::from_iter([entry]);
    if what == "create a group" {
        return user.declare(&group).await;
    }
    if what == "create a group on a queue that exists" {
        let client: &aws_sdk_sqs::Client = admin.broker().native().downcast_ref().expect("the client of the SDK");
        client.create_queue().queue_name(NAMES[1]).send().await.expect("it can be made");
        return user.declare(&group).await;
    }
    if what == "send to a topic, `declare = create`" {
        return send(user, TOPIC, Declare::Create).await;
    }
    if what == "create a group of a topic by its ARN" {
        admin.declare(&Topology::from_iter([Entry::new(TOPIC.parse()?)])).await?;
        let mut entry = Entry::new(ARN.parse()?);
        entry.group = Some("billing".into());
        return user.declare(&Topology::from_iter([entry])).await;
    }
    admin.declare(&group).await?;
    match what {
        "send to a topic, `declare = assume`" => send(user, TOPIC, Declare::Assume).await,
        "send to a topic, `declare = verify`" => send(user, TOPIC, Declare::Verify).await,
        "send to a topic by its ARN, `declare = create`" => send(user, ARN, Declare::Create).await,
        "receive by a group, `declare = assume`" => receive(admin, user).await,
        "verify a group" => user.verify(&group).await,
        "`stats` of a group" => user.stats(&Source::new(TOPIC.parse()?).with_group("billing")?).await.map(drop),
        "`purge` a topic" => user.purge(TOPIC).await,
        "delete a topic and its groups" => user.delete(TOPIC).await,
        other => panic!("nobody knows how to {other}"),
    }
}

async fn send(user: &Client, to: &str, declare: Declare) -> Result<(), Error> {
    let sender = user.sender(to).declare(declare).deadline(Duration::from_secs(1)).await?;
    sender.send("x").await.map(drop)
}

/// Acknowledges a message, and has one tried again.
async fn receive(admin: &Client, user: &Client) -> Result<(), Error> {
    admin.sender(TOPIC).await?.send_batch(["a", "b"]).await.expect("the administrator may send");
    let receiver = user.receiver(TOPIC).group("billing").declare(Declare::Assume).discard_dead_letters();
    let mut receiver = receiver.await?;
    receiver.receive().await?.ack_confirmed().await?;
    receiver.receive().await?.retry_after(Duration::from_secs(1));
    receiver.flush().await
}
