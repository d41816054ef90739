//! The queues of a topic's groups: their policies, their subscriptions.

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use queue_core::{Error, ErrorKind, Result};

use super::policy::{self, Allows};
use super::{Topics, partition, untold};
use crate::address::{is_fifo, place};
use crate::queues::Queues;
use crate::topology::NONE;

/// The attribute of a subscription without which messages come in an envelope of SNS.
const RAW: &str = "RawMessageDelivery";
/// What is told of a subscription that the owner of the queue has to confirm first, and the attribute that tells it.
const PENDING: &str = "PendingConfirmation";
/// How a queue subscribes.
const PROTOCOL: &str = "sqs";

impl Topics {
    /// The policy of a queue that is about to be made: it lets the topic in from the start, because Amazon takes up to a
    /// minute to heed one that changes. `None` where the queue's ARN is not known before.
    pub(crate) async fn policy_of_new(&self, name: &str, queue: &str, asked: Option<&str>) -> Result<Option<String>> {
        let arn = self.arn(name).await?;
        // Of one that is addressed by its name the account is known by now. Of another one's nothing depends on it.
        let own = match self.place(name)?.is_arn {
            false => arn.split(':').nth(4).map(str::to_owned),
            true => self.own_account().await.ok().map(str::to_owned),
        };
        let own =
            own.map(|account| format!("arn:{}:sqs:{}:{account}:{queue}", partition(self.region()), self.region()));
        Ok(own.map(|own| policy::with_ours(asked, &arn, &own)))
    }

    /// Has a queue get what is published, as it is and not in an envelope; or checks only.
    pub(crate) async fn subscribe(&self, queues: &Queues, name: &str, queue: &str, create: bool) -> Result<()> {
        let arn = self.arn(name).await?;
        let asked = [Attribute::QueueArn, Attribute::Policy];
        let mut told = queues.attributes(queue, &asked).await?;
        let own = told.remove(&asked[0]).ok_or_else(|| untold("queue", queue))?;
        let present = told.remove(&asked[1]).filter(|policy| !policy.is_empty());
        let allowed = policy::judge(present.as_deref(), &arn, &own)
            .map_err(|why| conflict(name, queue, "Policy", "a document of policy", why))?;
        let refused = |found| Err(conflict(name, queue, "Policy", "sqs:SendMessage for the topic", found));
        match allowed {
            Allows::Denied => return refused("Deny"),
            Allows::No if !create => return refused(NONE),
            _ if !create => return self.check_subscription(name, &arn, queue, &own).await,
            Allows::Yes => {}
            _ if policy::has_ours(present.as_deref(), &arn, &own) => {}
            // Before the subscription: what is published from then on has to get through.
            _ => queues.set_policy(queue, &policy::with_ours(present.as_deref(), &arn, &own)).await?,
        }
        let request = self.admin.subscribe().topic_arn(&*arn).protocol(PROTOCOL).endpoint(&own);
        // Without being told to, SNS answers with an ARN only where nobody has to confirm.
        let result = request.attributes(RAW, "true").send().await;
        match self.note("subscribe", name, result) {
            Ok(answer) if answer.subscription_arn().is_some_and(is_arn) => Ok(()),
            Ok(_) => Err(unconfirmed(name, queue, PENDING)),
            // With attributes of somebody else's, such as a filter.
            Err(error) if error.kind() == ErrorKind::Conflict => self.check_subscription(name, &arn, queue, &own).await,
            Err(error) => Err(error),
        }
    }

    /// Refuses a subscription that is missing or not confirmed, and one by which messages come in an envelope.
    async fn check_subscription(&self, name: &str, arn: &str, queue: &str, own: &str) -> Result<()> {
        let subscriptions = self.subscriptions(name, arn).await?.into_iter().filter(|s| s.endpoint == own);
        // One that was deleted is told for a while.
        let Some(subscription) = subscriptions.map(|s| s.arn).max_by_key(|arn| is_arn(arn)) else {
            return Err(Error::new(ErrorKind::NotFound, "the queue of the group is not subscribed to the topic")
                .with_operation("verify")
                .with_context("address", name)
                .with_context("queue", queue));
        };
        if !is_arn(&subscription) {
            return Err(unconfirmed(name, queue, &subscription));
        }
        let result = self.admin.get_subscription_attributes().subscription_arn(subscription).send().await;
        let attributes = self.note("read subscription", name, result)?.attributes.unwrap_or_default();
        if attributes.get(PENDING).is_some_and(|pending| pending.eq_ignore_ascii_case("true")) {
            return Err(unconfirmed(name, queue, PENDING));
        }
        match attributes.get(RAW).map(String::as_str) {
            Some("true" | "True") => Ok(()),
            found => Err(conflict(name, queue, RAW, "true", found.unwrap_or("false"))),
        }
    }

    async fn subscriptions(&self, name: &str, arn: &str) -> Result<Vec<Subscription>> {
        let mut found = Vec::new();
        let mut next = None;
        loop {
            let request = self.admin.list_subscriptions_by_topic().topic_arn(arn).set_next_token(next);
            let page = self.note("list subscriptions", name, request.send().await)?;
            let queues = page.subscriptions.unwrap_or_default().into_iter().filter(|s| s.protocol() == Some(PROTOCOL));
            found.extend(queues.map(|s| Subscription {
                arn: s.subscription_arn.unwrap_or_default(),
                endpoint: s.endpoint.unwrap_or_default(),
            }));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(found);
            }
        }
    }

    /// The queues of the groups of a topic, as far as they are named so and are where this client finds queues by name:
    /// those of other accounts and regions are their owners'.
    pub(crate) async fn groups(&self, queues: &Queues, name: &str) -> Result<Vec<String>> {
        let arn = self.arn(name).await?;
        let bare = self.place(name)?.name;
        let (stem, fifo) = bare.strip_suffix(".fifo").map_or((bare, false), |stem| (stem, true));
        let prefix = format!("{stem}--");
        let mut groups = Vec::new();
        for subscription in self.subscriptions(name, &arn).await? {
            let Some(queue) = place(&subscription.endpoint).filter(|queue| queue.region == Some(self.region())) else {
                continue;
            };
            if !queue.name.starts_with(&prefix) || is_fifo(queue.name) != fifo {
                continue;
            }
            match queues.url(queue.name).await {
                Ok(url) if place(&url).is_some_and(|own| own.account == queue.account) => {
                    groups.push(queue.name.to_owned());
                }
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(groups)
    }
}

/// The subscription of a queue.
struct Subscription {
    arn: String,
    /// The queue's ARN.
    endpoint: String,
}

fn is_arn(text: &str) -> bool {
    text.starts_with("arn:")
}

fn unconfirmed(name: &str, queue: &str, found: &str) -> Error {
    conflict(name, queue, "subscription", "confirmed", found)
}

fn conflict(name: &str, queue: &str, option: &str, asked: &str, found: &str) -> Error {
    Error::new(ErrorKind::Conflict, "the queue of the group gets nothing from the topic, or not as it was sent")
        .with_operation("declare")
        .with_context("address", name)
        .with_context("queue", queue)
        .with_context("option", option)
        .with_context("asked", asked)
        .with_context("found", found)
}
