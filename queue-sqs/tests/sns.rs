//! Topics on a server that speaks SNS and SQS, as other clients of both see them.

use std::time::Duration;

use aws_sdk_sns::types::MessageAttributeValue;
use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use queue_core::{Address, Client, Delivery, HeaderValue, Message, Ordering, Receiver};
use queue_sqs::DRIVER;
use serde_json::{Value, json};
use tokio::time::timeout;

mod support;
use support::*;

/// Where the tests find a server; without it they are reported as ignored.
const SNS: &str = "ANYQUEUE_TEST_SNS_URL";
const SOON: Duration = Duration::from_secs(30);

fn main() {
    support::main_on(
        SNS,
        cases![
            what_is_published_arrives_with_all_it_had,
            a_fifo_topic_keeps_the_order_of_keys_and_knows_ids,
            a_group_is_a_queue_that_gets_what_others_publish,
            opening_twice_makes_nothing_twice,
        ],
    );
}

/// A topic of its own, with a group.
struct Topic {
    client: Client,
    address: Address,
    group: Receiver,
}

impl Topic {
    async fn new(stem: &str, ordering: Ordering) -> Result<Self, Failure> {
        let url = std::env::var(SNS)?;
        let client = Client::connect_with(&format!("{url}{QUICK}"), &[DRIVER]).await?;
        let address = Address::topic(fresh(stem).name())?;
        let group = client.receiver(&address).group("billing").ordering(ordering).discard_dead_letters().await?;
        Ok(Self { client, address, group })
    }

    fn queue(&self) -> String {
        let name = self.address.name();
        name.strip_suffix(".fifo").map_or(format!("{name}--billing"), |stem| format!("{stem}--billing.fifo"))
    }

    async fn next(&mut self) -> Result<Delivery, Failure> {
        Ok(timeout(SOON, self.group.receive()).await??)
    }

    fn sqs(&self) -> &aws_sdk_sqs::Client {
        self.client.broker().native().downcast_ref().expect("the client of the SDK")
    }

    /// Amazon's client of SNS, with what the one of SQS has.
    fn sns(&self) -> Result<aws_sdk_sns::Client, Failure> {
        let endpoint: queue_core::Endpoint = std::env::var(SNS)?.parse()?;
        let config = aws_sdk_sns::Config::builder()
            .behavior_version(aws_sdk_sns::config::BehaviorVersion::v2026_01_12())
            .region(self.sqs().config().region().cloned())
            .endpoint_url(format!("http://{}", endpoint.hosts[0].with_default_port(80)))
            .credentials_provider(aws_credential_types::Credentials::new("test", "test", None, None, "test"));
        Ok(aws_sdk_sns::Client::from_conf(config.build()))
    }

    /// What the queue of the group tells of itself.
    async fn told(&self, name: Attribute) -> Result<String, Failure> {
        let url = self.sqs().get_queue_url().queue_name(self.queue()).send().await?.queue_url;
        let told = self.sqs().get_queue_attributes().set_queue_url(url).attribute_names(name.clone()).send().await?;
        Ok(told.attributes.unwrap_or_default().remove(&name).unwrap_or_default())
    }

    async fn end(self) -> Outcome {
        self.client.delete(self.address).await?;
        self.client.close(SOON).await;
        Ok(())
    }
}

async fn what_is_published_arrives_with_all_it_had() -> Outcome {
    let mut topic = Topic::new("published", Ordering::None).await?;
    let bytes: Vec<u8> = (0..=255).collect();
    let mut many = Message::new("grüße \u{1f980}").key("k").id("i").content_type("text/plain").header("z", true);
    for n in 0..12_i64 {
        many = many.header(format!("h{n:02}"), n);
    }
    // Moto gives a message with an attribute of bytes to nobody; the tests on the endpoint of their own have one.
    let typed = Message::new(bytes).header("float", -0.5).header("text", "ünï");
    let sent = [many, typed, Message::new("").header("large", i64::MAX), Message::tombstone("k")];
    let sender = topic.client.sender(&topic.address).await?;
    for message in sent {
        sender.send(message.clone()).await?;
        let got = topic.next().await?;
        assert_eq!((got.payload(), got.headers()), (message.payload(), message.headers()));
        assert_eq!((got.get_key(), got.get_id()), (message.get_key(), message.get_id()));
        assert_eq!(got.is_tombstone(), message.is_tombstone());
        got.ack_confirmed().await?;
    }
    topic.end().await
}

async fn a_fifo_topic_keeps_the_order_of_keys_and_knows_ids() -> Outcome {
    let mut topic = Topic::new("ordered.fifo", Ordering::PerKey).await?;
    let sender = topic.client.sender(&topic.address).await?;
    let message = |n: usize| Message::new(n.to_string()).key((n % 2).to_string()).id(format!("id-{n}"));
    sender.send_batch((0..6).chain(0..6).map(message)).await?;
    let mut got = [Vec::new(), Vec::new()];
    for _ in 0..6 {
        let delivery = topic.next().await?;
        let number: usize = delivery.text().unwrap_or_default().parse()?;
        let native = delivery.native_headers().get("MessageGroupId").and_then(HeaderValue::as_str);
        assert_eq!(native, Some((number % 2).to_string().as_str()));
        assert_eq!(delivery.get_id(), Some(format!("id-{number}").as_str()));
        got[number % 2].push(number);
        delivery.ack();
    }
    assert_eq!(got, [[0, 2, 4], [1, 3, 5]]);
    assert!(timeout(Duration::from_secs(2), topic.group.receive()).await.is_err(), "a repeat came");
    topic.end().await
}

async fn a_group_is_a_queue_that_gets_what_others_publish() -> Outcome {
    let mut topic = Topic::new("plain", Ordering::None).await?;
    let sns = topic.sns()?;
    let arn = sns.create_topic().name(topic.address.name()).send().await?.topic_arn.ok_or("no ARN")?;
    let subscriptions =
        sns.list_subscriptions_by_topic().topic_arn(&arn).send().await?.subscriptions.unwrap_or_default();
    let [subscription] = &subscriptions[..] else { panic!("{subscriptions:?}") };
    let own = topic.told(Attribute::QueueArn).await?;
    assert_eq!((subscription.protocol(), subscription.endpoint()), (Some("sqs"), Some(own.as_str())));
    let request =
        sns.get_subscription_attributes().subscription_arn(subscription.subscription_arn().unwrap_or_default());
    let raw = request.send().await?.attributes.unwrap_or_default().remove("RawMessageDelivery");
    assert_eq!(raw.map(|raw| raw.to_lowercase()).as_deref(), Some("true"));
    let policy: Value = serde_json::from_str(&topic.told(Attribute::Policy).await?)?;
    let statement = &policy["Statement"][0];
    assert_eq!((&statement["Action"], &statement["Resource"]), (&json!("sqs:SendMessage"), &json!(own)));
    assert_eq!(statement["Principal"], json!({ "Service": "sns.amazonaws.com" }));
    assert_eq!(statement["Condition"], json!({ "ArnEquals": { "aws:SourceArn": arn } }));
    let number = MessageAttributeValue::builder().data_type("Number").string_value("7").build()?;
    let request = sns.publish().topic_arn(&arn).message("from elsewhere");
    request.message_attributes("n", number).send().await?;
    let got = topic.next().await?;
    assert_eq!((got.text(), got.headers().get("n")), (Some("from elsewhere"), Some(&HeaderValue::Int(7))));
    got.ack_confirmed().await?;
    topic.end().await
}

async fn opening_twice_makes_nothing_twice() -> Outcome {
    let topic = Topic::new("twice", Ordering::None).await?;
    let before = topic.told(Attribute::Policy).await?;
    topic.client.receiver(&topic.address).group("billing").discard_dead_letters().await?;
    assert_eq!(topic.told(Attribute::Policy).await?, before);
    let sns = topic.sns()?;
    let arn = sns.create_topic().name(topic.address.name()).send().await?.topic_arn;
    let listed = sns.list_subscriptions_by_topic().set_topic_arn(arn.clone()).send().await?;
    assert_eq!(listed.subscriptions().len(), 1);
    let (queue, sqs) = (topic.queue(), topic.sqs().clone());
    topic.end().await?;
    assert!(sqs.get_queue_url().queue_name(queue).send().await.is_err());
    assert!(sns.get_topic_attributes().set_topic_arn(arn).send().await.is_err());
    Ok(())
}
