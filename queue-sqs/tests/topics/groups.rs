//! What opening a group makes and refuses, and what goes with a topic.

use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use queue_core::{Client, Declare, Entry, Error, ErrorKind, Source, Topology};
use tokio::time::timeout;

use super::endpoint::Endpoint;
use super::*;

#[tokio::test]
async fn the_policy_of_a_queue_that_exists_is_kept() -> Outcome {
    const THEIRS: &str =
        r#"{"Sid":"theirs","Effect":"Allow","Principal":"*","Action":"sqs:ReceiveMessage","Resource":"*"}"#;
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    // As Amazon takes it: a list, one statement, none.
    for (group, statements) in [("list", format!("[{THEIRS}]")), ("one", THEIRS.to_owned()), ("none", "[]".to_owned())]
    {
        let asked = format!(r#"{{"Version":"2012-10-17","Statement":{statements}}}"#);
        let open = || client.receiver("topic:orders").group(group).native("Policy", &*asked).discard_dead_letters();
        open().await?;
        open().await.map_err(|e| format!("{group}: {e}"))?;
        let other = asked.replace("2012", "2008").replace("theirs", "others");
        let refused = client.receiver("topic:orders").group(group).native("Policy", other).discard_dead_letters().await;
        let refused = refused.map(drop).map_err(|e| e.kind());
        assert_eq!(refused, if group == "none" { Ok(()) } else { Err(ErrorKind::Conflict) }, "{group}");
    }
    let theirs = format!(r#"{{"Version":"2012-10-17","Statement":[{THEIRS}]}}"#);
    let open = || client.receiver("topic:orders").group("billing").native("Policy", &*theirs).discard_dead_letters();
    open().await?;
    let policy = attribute(&endpoint, "orders--billing", Attribute::Policy).await?.unwrap_or_default();
    assert!(policy.contains("theirs") && policy.contains(&arn("orders")), "{policy}");
    // What was added is no difference, and nothing is added twice.
    let mut billing = open().declare(Declare::Verify).await?;
    open().await?;
    assert_eq!(attribute(&endpoint, "orders--billing", Attribute::Policy).await?, Some(policy));
    assert_eq!(endpoint.counts().of("SetQueueAttributes"), 0, "it was made with all of it");
    client.sender("topic:orders").await?.send("x").await?;
    assert_eq!(texts(&take(&mut billing, 1).await?), ["x"]);
    Ok(())
}

#[tokio::test]
async fn a_queue_that_exists_gets_the_statement_and_its_policy_is_kept() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let theirs = r#"{"Statement":{"Sid":"theirs","Effect":"Allow","Principal":"*","Action":"sqs:ReceiveMessage","Resource":"*"}}"#;
    let queue = endpoint.client().create_queue().queue_name("orders--billing");
    queue.attributes(Attribute::Policy, theirs).send().await?;
    let mut billing = group(&client, "topic:orders", "billing").await?;
    let policy = attribute(&endpoint, "orders--billing", Attribute::Policy).await?.unwrap_or_default();
    assert!(policy.contains("theirs") && policy.contains(&arn("orders")), "{policy}");
    client.sender("topic:orders").await?.send("x").await?;
    assert_eq!(texts(&take(&mut billing, 1).await?), ["x"]);
    // What opening once more takes, beside what a queue does.
    let before = endpoint.counts();
    group(&client, "topic:orders", "billing").await?;
    client.sender("topic:orders").await?;
    let asked = endpoint.counts().since(&before);
    let of = |actions: &[&str]| actions.iter().map(|action| asked.of(action)).collect::<Vec<_>>();
    assert_eq!(of(&["CreateTopic", "GetQueueAttributes", "Subscribe", "GetTopicAttributes"]), [2, 1, 1, 1]);
    assert_eq!(of(&["SetQueueAttributes", "CreateQueue", "GetCallerIdentity"]), [0, 0, 0]);
    Ok(())
}

#[tokio::test]
async fn what_is_missing_is_told_and_nothing_is_made() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let mut entry = Entry::new("topic:orders".parse()?);
    entry.group = Some("billing".into());
    let all = Topology::from_iter([entry]);
    let missing = async || client.verify(&all).await.map_err(|e| (e.kind(), e.to_string()));
    assert!(matches!(missing().await, Err((ErrorKind::NotFound, text)) if text.contains("the topic does not exist")));
    let topic = Topology::from_iter([Entry::new("topic:orders".parse()?)]);
    client.declare(&topic).await?;
    client.verify(&topic).await?;
    assert!(matches!(missing().await, Err((ErrorKind::NotFound, text)) if text.contains("the queue does not exist")));
    let sqs = endpoint.client();
    sqs.create_queue().queue_name("orders--billing").send().await?;
    assert!(matches!(missing().await, Err((ErrorKind::Conflict, text)) if text.contains("Policy")));
    // The policy of somebody else, and no subscription.
    let policy = format!(
        r#"{{"Statement":{{"Effect":"Allow","Principal":"*","Action":"sqs:SendMessage","Resource":"*","Condition":{{"ArnLike":{{"aws:SourceArn":"{}"}}}}}}}}"#,
        arn("orders")
    );
    let url = sqs.get_queue_url().queue_name("orders--billing").send().await?.queue_url;
    sqs.set_queue_attributes().set_queue_url(url).attributes(Attribute::Policy, policy).send().await?;
    assert!(matches!(missing().await, Err((ErrorKind::NotFound, text)) if text.contains("subscribed")));
    assert_eq!(endpoint.counts().of("Subscribe"), 0);
    client.declare(&all).await?;
    client.verify(&all).await?;
    assert_eq!(endpoint.counts().of("SetQueueAttributes"), 1, "the policy let it in already");
    Ok(())
}

#[tokio::test]
async fn a_subscription_of_somebody_else_is_taken_unless_it_packs_messages() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    client.declare(&Topology::from_iter([Entry::new("topic:orders".parse()?)])).await?;
    let sns = endpoint.topics();
    // More than a page of others before it.
    for group in ["one", "two", "three"] {
        group_of(&client, group).await?;
    }
    let subscribe = |queue: &str, attributes: &[(&str, &str)]| {
        let endpoint = format!("arn:aws:sqs:us-east-1:{ACCOUNT}:{queue}");
        let request = sns.subscribe().topic_arn(arn("orders")).protocol("sqs").endpoint(endpoint);
        attributes.iter().fold(request, |request, (name, value)| request.attributes(*name, *value)).send()
    };
    subscribe("orders--packed", &[]).await?;
    subscribe("orders--some", &[("RawMessageDelivery", "true"), ("FilterPolicy", "{}")]).await?;
    group_of(&client, "some").await?;
    let refused = group_of(&client, "packed").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    assert_eq!(differs(&refused), ["RawMessageDelivery", "true", "false"]);
    Ok(())
}

/// What a conflict is about.
fn differs(error: &Error) -> [&str; 3] {
    ["option", "asked", "found"].map(|key| error.context(key).unwrap_or_default())
}

#[tokio::test]
async fn a_subscription_that_nobody_has_confirmed_is_none() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let owner = connect(&endpoint).await?;
    let mut entry = Entry::new("topic:orders".parse()?);
    owner.declare(&Topology::from_iter([entry.clone()])).await?;
    // In another account, where whoever owns the queue is asked first.
    endpoint.client().create_queue().queue_name("orders--billing").send().await?;
    let url = endpoint.url("&wait_time=1s&account=111111111111");
    let client = Client::connect_with(&url, &[queue_sqs::DRIVER]).await?;
    let address = format!("topic:{}", arn("orders"));
    entry.address = address.parse()?;
    entry.group = Some("billing".into());
    let refused = [
        group(&client, &address, "billing").await.map(drop).unwrap_err(),
        client.verify(&Topology::from_iter([entry])).await.unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
        assert_eq!(differs(&refused), ["subscription", "confirmed", "PendingConfirmation"]);
    }
    // One that has an ARN all the same.
    let request = endpoint.topics().subscribe().topic_arn(arn("orders")).protocol("sqs");
    let request = request.endpoint(format!("arn:aws:sqs:us-east-1:{ACCOUNT}:orders--waiting"));
    request.attributes("RawMessageDelivery", "true").attributes("PendingConfirmation", "true").send().await?;
    let refused = group_of(&owner, "waiting").await.unwrap_err();
    assert_eq!(differs(&refused), ["subscription", "confirmed", "PendingConfirmation"], "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_queue_that_denies_the_topic_is_no_group() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    let deny = |condition: &str| {
        format!(r#"{{"Statement":{{"Effect":"Deny","Principal":"*","Action":"sqs:*","Resource":"*"{condition}}}}}"#)
    };
    let queue = |name: &str, policy: String| {
        endpoint.client().create_queue().queue_name(name).attributes(Attribute::Policy, policy).send()
    };
    queue("orders--denied", deny("")).await?;
    let refused = group_of(&client, "denied").await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    assert_eq!(differs(&refused), ["Policy", "sqs:SendMessage for the topic", "Deny"]);
    assert_eq!(endpoint.counts().of("Subscribe"), 0);
    // What cannot be judged counts as met, and nothing is added a second time.
    queue("orders--doubted", deny(r#","Condition":{"Bool":{"aws:SecureTransport":"false"}}"#)).await?;
    for _ in 0..2 {
        group_of(&client, "doubted").await?;
    }
    assert_eq!(endpoint.counts().of("SetQueueAttributes"), 1);
    Ok(())
}

async fn group_of(client: &Client, name: &str) -> Result<(), Error> {
    group(client, "topic:orders", name).await.map(drop)
}

#[tokio::test]
async fn a_topic_goes_with_its_groups() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let client = connect(&endpoint).await?;
    for (topic, name) in
        [("topic:orders", "one"), ("topic:orders", "two"), ("topic:orders", "three"), ("topic:orders-x", "one")]
    {
        let mut entry = Entry::new(topic.parse()?);
        entry.group = Some(name.into());
        client.declare(&Topology::from_iter([entry])).await?;
    }
    // Queues of somebody else's, which subscribe too: one of another name, and those of another account and region, whose
    // names are those of queues here.
    let sqs = endpoint.client();
    let others = ["orders-audit", "orders--abroad", "orders--far", "orders--nowhere"];
    let at = [("us-east-1", ACCOUNT), ("us-east-1", "111111111111"), ("eu-west-1", ACCOUNT), ("us-east-1", ACCOUNT)];
    for (name, (region, account)) in others.into_iter().zip(at) {
        let queue = format!("arn:aws:sqs:{region}:{account}:{name}");
        endpoint.topics().subscribe().topic_arn(arn("orders")).protocol("sqs").endpoint(queue).send().await?;
    }
    // The last one's queue is gone.
    let others = &others[..3];
    for queue in others {
        let url = sqs.create_queue().queue_name(*queue).send().await?.queue_url;
        sqs.send_message().set_queue_url(url).message_body("x").send().await?;
    }
    let sender = client.sender("topic:orders").await?;
    sender.send("x").await?;
    let one = Source::new("topic:orders".parse()?).with_group("one")?;
    assert_eq!(client.stats(&one).await?.ready, Some(1));
    client.purge("topic:orders").await?;
    assert_eq!(client.stats(&one).await?.ready, Some(0));
    // A queue that is gone without its subscription, which this client knows and another one does not.
    let url = sqs.get_queue_url().queue_name("orders--one").send().await?.queue_url;
    sqs.delete_queue().set_queue_url(url).send().await?;
    for client in [&client, &connect(&endpoint).await?] {
        endpoint.pass(Duration::from_secs(61));
        sender.send("x").await?;
        client.purge("topic:orders").await?;
        let three = Source::new("topic:orders".parse()?).with_group("three")?;
        assert_eq!(client.stats(&three).await?.ready, Some(0));
    }
    client.delete("topic:orders").await?;
    for queue in ["orders--one", "orders--two", "orders--three"] {
        assert!(!exists(&endpoint, queue).await, "{queue}");
    }
    assert!(exists(&endpoint, "orders-x--one").await);
    for queue in others {
        let left = attribute(&endpoint, queue, Attribute::ApproximateNumberOfMessages).await?;
        assert_eq!(left.as_deref(), Some("1"), "{queue}");
    }
    assert_eq!(sender.send("x").await.unwrap_err().kind(), ErrorKind::NotFound);
    client.delete("topic:orders").await?;
    Ok(())
}

#[tokio::test]
async fn a_topic_goes_by_its_arn_and_its_groups_are_ones_own() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let owner = connect(&endpoint).await?;
    owner.declare(&Topology::from_iter([Entry::new("topic:orders".parse()?)])).await?;
    let client = connect(&endpoint).await?;
    let address = format!("topic:{}", arn("orders"));
    let mut billing = client.receiver(&*address).group("billing").await?;
    client.sender(&*address).declare(Declare::Assume).await?.send("x").await?;
    let delivery = timeout(PATIENCE, billing.receive()).await??;
    delivery.reject("no");
    billing.flush().await?;
    assert!(exists(&endpoint, "orders--billing").await && exists(&endpoint, "orders--billing-dlq").await);
    // For the policy of the queue that was made, once.
    assert_eq!(endpoint.counts().of("GetCallerIdentity"), 1);
    // Another account's is not made, and another region's not looked for.
    let foreign = format!("topic:arn:aws:sns:us-east-1:111111111111:{}", "orders");
    let refused = client.sender(&*foreign).await.unwrap_err();
    assert_eq!((refused.kind(), refused.context("account")), (ErrorKind::NotFound, Some("111111111111")), "{refused}");
    let far = client.sender("topic:arn:aws:sns:eu-west-1:000000000000:orders").await.unwrap_err();
    assert_eq!((far.kind(), far.context("region")), (ErrorKind::InvalidInput, Some("eu-west-1")), "{far}");
    Ok(())
}

#[tokio::test]
async fn assuming_asks_for_the_account_once_and_makes_nothing() -> Outcome {
    let endpoint = Endpoint::start().await?;
    let owner = connect(&endpoint).await?;
    let mut billing = group(&owner, "topic:orders", "billing").await?;
    let client = connect(&endpoint).await?;
    let before = endpoint.counts();
    for text in ["a", "b"] {
        client.sender("topic:orders").declare(Declare::Assume).await?.send(text).await?;
    }
    let asked = endpoint.counts().since(&before).requests;
    let asked: Vec<_> = asked.iter().filter(|(_, n)| **n > 0).map(|(action, n)| (action.as_str(), *n)).collect();
    let asked: Vec<_> = asked.into_iter().filter(|(action, _)| *action != "ReceiveMessage").collect();
    assert_eq!(asked, [("GetCallerIdentity", 1), ("GetTopicAttributes", 2), ("PublishBatch", 2)]);
    assert_eq!(texts(&take(&mut billing, 2).await?).len(), 2);
    let before = endpoint.counts();
    client.receiver("topic:orders").group("billing").declare(Declare::Assume).discard_dead_letters().await?;
    let made = endpoint.counts().since(&before);
    assert_eq!((made.of("GetQueueUrl"), made.of("Subscribe"), made.of("GetTopicAttributes")), (1, 0, 0));
    Ok(())
}
