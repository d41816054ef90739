//! Topics of SNS: where they are, who subscribes to them, and what is published.

mod policy;
mod subscription;

use std::collections::HashMap;
use std::sync::Arc;

use aws_config::SdkConfig;
use aws_sdk_sns::Client;
use aws_sdk_sns::config::StalledStreamProtectionConfig;
use aws_sdk_sns::types::{MessageAttributeValue, PublishBatchRequestEntry};
use aws_sdk_sqs::types::SendMessageBatchRequestEntry as Entry;
use parking_lot::RwLock;
use queue_core::{Endpoint, Error, ErrorKind, Events, Result};
use tokio::sync::OnceCell;

use crate::address::{Place, is_fifo, topic_place};
use crate::config::{NO_SNS, SqsConfig, host_of, timeout_of_one, timeouts};
use crate::door::Verdicts;
use crate::error::{self, Words};
use crate::link::Link;

pub(crate) use self::policy::without_ours;

/// The topics of one account, as far as they were asked for.
pub(crate) struct Topics {
    /// For requests that may be repeated: the SDK does it.
    admin: Client,
    /// For messages: whoever calls decides about another try.
    once: Client,
    link: Arc<Link>,
    /// Tells the account of the credentials.
    identity: Option<aws_sdk_sts::Client>,
    own_account: OnceCell<String>,
    /// Of the configuration.
    account: Option<String>,
    /// By what their addresses say.
    arns: RwLock<HashMap<Box<str>, Arc<str>>>,
}

/// The error of a broker that has no topics.
pub(crate) fn unsupported() -> Error {
    Error::unsupported("this broker has no topics").with_context("topics_need", NEED)
}

/// What would bring topics to a broker that has none.
pub(crate) const NEED: &str =
    "an endpoint of SNS: `sns_endpoint` is `none`, or the broker was made from a client of SQS";

/// Makes the clients as the configuration and the environment say; `None` where there is no SNS. No request is made.
pub(crate) fn connect(loaded: &SdkConfig, endpoint: &Endpoint, config: &SqsConfig, events: &Events) -> Option<Topics> {
    let emulator = config.emulator_url(endpoint);
    let url = match config.sns_endpoint.as_deref() {
        Some(NO_SNS) => return None,
        Some(own) => Some(own.to_owned()),
        None => emulator.clone(),
    };
    let attempt = config.request_timeout;
    let identity = aws_sdk_sts::config::Builder::from(loaded).timeout_config(timeouts(attempt, 2 * attempt));
    let identity = aws_sdk_sts::Client::from_conf(match emulator {
        Some(url) => identity.endpoint_url(url).build(),
        None => identity.build(),
    });
    let host = match &url {
        Some(url) => format!("sns {}", host_of(url)),
        None => format!("sns {}", loaded.region().map(AsRef::as_ref).unwrap_or_default()),
    };
    let sns = aws_sdk_sns::config::Builder::from(loaded);
    let sns = Client::from_conf(match url {
        Some(url) => sns.endpoint_url(url).build(),
        None => sns.build(),
    });
    Some(Topics::new(&sns, Some(identity), host, config, events.clone()))
}

impl Topics {
    pub(crate) fn new(
        client: &Client,
        identity: Option<aws_sdk_sts::Client>,
        host: String,
        config: &SqsConfig,
        events: Events,
    ) -> Self {
        let attempt = config.request_timeout;
        let base = || client.config().to_builder().stalled_stream_protection(StalledStreamProtectionConfig::disabled());
        let once = Client::from_conf(
            base()
                .retry_config(aws_smithy_types::retry::RetryConfig::disabled())
                .timeout_config(timeout_of_one(attempt))
                .build(),
        );
        let pinged = once.clone();
        let link = Link::new(host, events, move || {
            let request = pinged.list_topics();
            Box::pin(
                async move { request.send().await.map(drop).map_err(|e| error::from_sdk("ping", &e, Words::Hidden)) },
            )
        });
        Self {
            admin: Client::from_conf(base().timeout_config(timeouts(attempt, 2 * attempt)).build()),
            once,
            link,
            identity,
            own_account: OnceCell::new(),
            account: config.account.clone(),
            arns: RwLock::default(),
        }
    }

    /// The way to SNS, which may be another host than that of SQS.
    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// The ARN of a topic. For one that is addressed by its name the account is asked for, once.
    pub(crate) async fn arn(&self, name: &str) -> Result<Arc<str>> {
        if let Some(arn) = self.arns.read().get(name) {
            return Ok(arn.clone());
        }
        let place = self.place(name)?;
        let arn: Arc<str> = if place.is_arn {
            name.into()
        } else {
            let region = self.region();
            let account = self.account().await.map_err(|e| e.with_context("address", name))?;
            format!("arn:{}:sns:{region}:{account}:{}", partition(region), place.name).into()
        };
        self.arns.write().insert(name.into(), arn.clone());
        Ok(arn)
    }

    /// The ARN of a topic for which messages are meant, which is there unless that may not be asked.
    pub(crate) async fn locate(&self, name: &str) -> Result<Arc<str>> {
        match self.find(name).await {
            Err(error) if error.kind() == ErrorKind::Unauthorized => self.arn(name).await,
            other => other,
        }
    }

    /// Makes a topic that is not there, or checks only.
    pub(crate) async fn ensure(&self, name: &str, create: bool) -> Result<()> {
        if !create {
            return self.find(name).await.map(drop);
        }
        let named = self.place(name)?.account.map(str::to_owned).or_else(|| self.account.clone());
        if let Some(account) = named {
            let why = "the topic does not exist, and none is made in an account that is named: its owner makes it";
            return match self.locate(name).await {
                Err(error) if error.kind() == ErrorKind::NotFound => Err(Error::new(ErrorKind::NotFound, why)
                    .with_operation("declare")
                    .with_context("address", name)
                    .with_context("account", account)),
                other => other.map(drop),
            };
        }
        // Answers with the topic that exists, too.
        let fifo = is_fifo(name).then(|| HashMap::from([("FifoTopic".to_owned(), "true".to_owned())]));
        let result = self.admin.create_topic().name(name).set_attributes(fifo).send().await;
        let output = self.note("create topic", name, result)?;
        let arn = output.topic_arn.ok_or_else(|| untold("topic", name))?;
        self.arns.write().insert(name.into(), arn.into());
        Ok(())
    }

    async fn find(&self, name: &str) -> Result<Arc<str>> {
        let arn = self.arn(name).await?;
        let result = self.admin.get_topic_attributes().topic_arn(&*arn).send().await;
        self.note("find topic", name, result).map(|_| arn)
    }

    /// Deletes a topic and its subscriptions; one that does not exist is deleted.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let arn = self.arn(name).await?;
        let result = self.admin.delete_topic().topic_arn(&*arn).send().await;
        self.arns.write().remove(name);
        match self.note("delete topic", name, result) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Publishes what was made for a queue.
    pub(crate) async fn publish(&self, name: &str, arn: &str, entries: Vec<Entry>) -> Result<Verdicts> {
        let entries: Vec<_> = entries.into_iter().map(published).collect::<Result<_>>()?;
        let request = self.once.publish_batch().topic_arn(arn).set_publish_batch_request_entries(Some(entries));
        let result = self.link.note("send", Words::Hidden, request.send().await);
        let output = result.map_err(|e| e.with_context("address", name))?;
        let mut verdicts = Verdicts::default();
        for entry in output.successful.unwrap_or_default() {
            let id = entry.id.unwrap_or_default();
            verdicts.accept(id, entry.message_id.unwrap_or_default(), entry.sequence_number);
        }
        for entry in output.failed.unwrap_or_default() {
            let error = error::of_entry("send", &entry.code, entry.message.as_deref(), entry.sender_fault);
            verdicts.refused.push((entry.id, error));
        }
        Ok(verdicts)
    }

    /// The account whose topics are addressed by name.
    async fn account(&self) -> Result<&str> {
        match &self.account {
            Some(account) => Ok(account),
            None => self.own_account().await,
        }
    }

    /// The account of the credentials; asked for once.
    async fn own_account(&self) -> Result<&str> {
        let asked = self.own_account.get_or_try_init(|| async {
            let why = "nothing tells the account of the topic: give its ARN as address, or `account`";
            let unknown = || Error::new(ErrorKind::InvalidConfig, why).with_operation("find topic");
            let identity = self.identity.as_ref().ok_or_else(unknown)?;
            let result = identity.get_caller_identity().send().await;
            // Not by the link: it is another service's.
            let output = result.map_err(|e| error::from_sdk("ask for the account", &e, Words::Hidden))?;
            output.account.ok_or_else(unknown)
        });
        asked.await.map(String::as_str)
    }

    fn region(&self) -> &str {
        self.admin.config().region().map(AsRef::as_ref).unwrap_or_default()
    }

    /// Where the topic is. A client speaks to one region.
    fn place<'a>(&self, name: &'a str) -> Result<Place<'a>> {
        let place = topic_place(name).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the address was not checked").with_context("address", name)
        })?;
        match place.region {
            Some(asked) if asked != self.region() => {
                Err(Error::new(ErrorKind::InvalidInput, "the topic is in another region than the client")
                    .with_context("address", name)
                    .with_context("region", asked)
                    .with_context("client_region", self.region()))
            }
            _ => Ok(place),
        }
    }

    /// Notes how a request about a topic ended.
    fn note<T, E>(
        &self,
        operation: &'static str,
        name: &str,
        result: std::result::Result<T, aws_sdk_sns::error::SdkError<E>>,
    ) -> Result<T>
    where
        E: aws_sdk_sns::error::ProvideErrorMetadata + std::error::Error + 'static,
    {
        self.link.note(operation, Words::Shown, result).map_err(|e| e.with_context("address", name))
    }
}

fn untold(what: &'static str, name: &str) -> Error {
    Error::new(ErrorKind::Internal, "the broker does not tell an ARN").with_context(what, name)
}

/// What goes to a queue, as it goes to a topic.
fn published(entry: Entry) -> Result<PublishBatchRequestEntry> {
    let incomplete = |_| Error::new(ErrorKind::Internal, "an entry of a batch is incomplete");
    let attributes = entry.message_attributes.into_iter().flatten().map(|(name, value)| {
        let made = MessageAttributeValue::builder()
            .data_type(value.data_type)
            .set_string_value(value.string_value)
            .set_binary_value(value.binary_value)
            .build();
        made.map(|value| (name, value)).map_err(incomplete)
    });
    let attributes: HashMap<_, _> = attributes.collect::<Result<_>>()?;
    PublishBatchRequestEntry::builder()
        .id(entry.id)
        .message(entry.message_body)
        .set_message_attributes((!attributes.is_empty()).then_some(attributes))
        .set_message_group_id(entry.message_group_id)
        .set_message_deduplication_id(entry.message_deduplication_id)
        .build()
        .map_err(incomplete)
}

/// The partition of Amazon that a region belongs to.
fn partition(region: &str) -> &'static str {
    const PARTITIONS: &[(&str, &str)] = &[
        ("cn-", "aws-cn"),
        ("us-gov-", "aws-us-gov"),
        ("us-iso-", "aws-iso"),
        ("us-isob-", "aws-iso-b"),
        ("eu-isoe-", "aws-iso-e"),
        ("us-isof-", "aws-iso-f"),
        ("eusc-", "aws-eusc"),
    ];
    PARTITIONS.iter().find(|(prefix, _)| region.starts_with(prefix)).map_or("aws", |(_, partition)| partition)
}
