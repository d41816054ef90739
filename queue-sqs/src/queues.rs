//! Queues: their names, their URLs, their attributes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use parking_lot::RwLock;
use queue_core::{Address, Entry, Error, ErrorKind, Result};

use crate::config::Clients;
use crate::error::Words;
use crate::link::Link;

/// The longest name, `.fifo` included.
const MAX_NAME: usize = 80;
const FIFO: &str = ".fifo";

/// Receives beyond `max_deliveries` before the broker's own redrive takes a message: those of crashes, releases and
/// prefetched messages count as well, and the library is to be first.
const BACKSTOP: u32 = 10;
/// The most receives that a redrive policy takes.
const MAX_RECEIVES: u32 = 1000;
/// Failed deliveries before the library dead-letters, where the entry does not say.
const MAX_DELIVERIES: u32 = 5;
/// How long a dead-letter queue that we create keeps its messages: the longest there is, 14 days.
const DEAD_LETTER_RETENTION: &str = "1209600";

/// The queues of one account, as far as they were asked for.
#[derive(Debug)]
pub(crate) struct Queues {
    clients: Clients,
    link: Arc<Link>,
    account: Option<String>,
    urls: RwLock<HashMap<Box<str>, Arc<str>>>,
}

/// The name of the queue that an address stands for.
pub(crate) fn name_of(address: &Address) -> Result<&str> {
    if address.is_topic() {
        return Err(Error::unsupported("SQS has queues only").with_context("address", address));
    }
    let name = address.name();
    let stem = name.strip_suffix(FIFO).unwrap_or(name);
    let legal = !stem.is_empty()
        && name.len() <= MAX_NAME
        && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if legal {
        return Ok(name);
    }
    let why = "the name of an SQS queue has 1 to 80 letters, digits, - and _, and may end in .fifo";
    Err(Error::new(ErrorKind::InvalidInput, why).with_context("address", address))
}

/// Whether the queue of this name is a FIFO queue.
pub(crate) fn is_fifo(name: &str) -> bool {
    name.ends_with(FIFO)
}

impl Queues {
    pub(crate) fn new(clients: Clients, link: Arc<Link>, account: Option<String>) -> Self {
        Self { clients, link, account, urls: RwLock::default() }
    }

    /// The URL of a queue; asked once.
    pub(crate) async fn url(&self, name: &str) -> Result<Arc<str>> {
        if let Some(url) = self.urls.read().get(name) {
            return Ok(url.clone());
        }
        let result = self
            .clients
            .admin
            .get_queue_url()
            .queue_name(name)
            .set_queue_owner_aws_account_id(self.account.clone())
            .send()
            .await;
        let output = self.link.note("find queue", Words::Shown, result).map_err(|e| e.with_context("address", name))?;
        let url: Arc<str> = output.queue_url.unwrap_or_default().into();
        self.urls.write().insert(name.into(), url.clone());
        Ok(url)
    }

    /// Forgets the URL of a queue that is gone.
    pub(crate) fn forget(&self, name: &str) {
        self.urls.write().remove(name);
    }

    /// The attributes of a queue.
    pub(crate) async fn attributes(&self, name: &str, which: &[Attribute]) -> Result<HashMap<Attribute, String>> {
        let url = self.url(name).await?;
        let result = self
            .clients
            .admin
            .get_queue_attributes()
            .queue_url(&*url)
            .set_attribute_names(Some(which.to_vec()))
            .send()
            .await;
        match self.link.note("read attributes", Words::Shown, result) {
            Ok(output) => Ok(output.attributes.unwrap_or_default()),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    /// Creates what is missing, or checks only.
    pub(crate) async fn declare(&self, entry: &Entry, create: bool) -> Result<()> {
        let name = name_of(&entry.address)?;
        if entry.group.is_some() {
            return Err(Error::unsupported("an SQS queue has no groups").with_context("address", name));
        }
        let asked = asked(entry)?;
        if let Some(dead_letter) = &entry.dead_letter {
            let target = name_of(dead_letter)?;
            if is_fifo(target) != is_fifo(name) {
                return Err(Error::new(ErrorKind::InvalidInput, "the dead letters of a FIFO queue go to a FIFO queue")
                    .with_context("address", target));
            }
            let keep = BTreeMap::from([("MessageRetentionPeriod".to_owned(), DEAD_LETTER_RETENTION.to_owned())]);
            self.ensure(target, create, &BTreeMap::new(), || Ok(keep)).await?;
            if create {
                let backstop = self.redrive_policy(target, entry.max_deliveries).await?;
                return self.ensure(name, create, &asked, || Ok(with_backstop(asked.clone(), backstop))).await;
            }
        }
        self.ensure(name, create, &asked, || Ok(asked.clone())).await
    }

    /// Compares a queue with what is asked of it, and creates it if it is missing.
    async fn ensure(
        &self,
        name: &str,
        create: bool,
        asked: &BTreeMap<String, String>,
        attributes: impl FnOnce() -> Result<BTreeMap<String, String>>,
    ) -> Result<()> {
        match self.url(name).await {
            Ok(_) => match self.compare(name, asked).await {
                Err(error) if create && error.kind() == ErrorKind::NotFound => {} // the URL was an old one
                other => return other,
            },
            Err(error) if create && error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut attributes = attributes()?;
        if is_fifo(name) {
            attributes.insert("FifoQueue".to_owned(), "true".to_owned());
            attributes.entry("ContentBasedDeduplication".to_owned()).or_insert_with(|| "false".to_owned());
        }
        let attributes: HashMap<Attribute, String> =
            attributes.iter().map(|(k, v)| (Attribute::from(k.as_str()), v.clone())).collect();
        let result = self
            .clients
            .admin
            .create_queue()
            .queue_name(name)
            .set_attributes((!attributes.is_empty()).then_some(attributes))
            .send()
            .await;
        match self.link.note("create queue", Words::Shown, result) {
            Ok(output) => {
                if let Some(url) = output.queue_url {
                    self.urls.write().insert(name.into(), url.into());
                }
                Ok(())
            }
            // Somebody else made it in between.
            Err(error) if error.kind() == ErrorKind::Conflict && self.url(name).await.is_ok() => {
                self.compare(name, asked).await
            }
            Err(error) => Err(error.with_context("address", name)),
        }
    }

    /// Refuses a queue that differs from what was asked for explicitly, as far as the broker tells.
    async fn compare(&self, name: &str, asked: &BTreeMap<String, String>) -> Result<()> {
        if asked.is_empty() {
            return Ok(());
        }
        let present = self.attributes(name, &[Attribute::All]).await?;
        for (attribute, wanted) in asked {
            let Some(found) = present.get(&Attribute::from(attribute.as_str())) else { continue };
            if !same(found, wanted) {
                return Err(Error::new(ErrorKind::Conflict, "the queue exists and differs from what was asked for")
                    .with_operation("declare")
                    .with_context("address", name)
                    .with_context("attribute", attribute)
                    .with_context("found", found)
                    .with_context("asked", wanted));
            }
        }
        Ok(())
    }

    async fn redrive_policy(&self, target: &str, max_deliveries: Option<u32>) -> Result<String> {
        let attributes = self.attributes(target, &[Attribute::QueueArn]).await?;
        let arn = attributes.get(&Attribute::QueueArn).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the broker does not tell the ARN of the dead-letter queue")
                .with_context("address", target)
        })?;
        let receives = max_deliveries.unwrap_or(MAX_DELIVERIES).saturating_add(BACKSTOP).min(MAX_RECEIVES);
        Ok(format!(r#"{{"deadLetterTargetArn":"{arn}","maxReceiveCount":"{receives}"}}"#))
    }

    /// Deletes a queue; one that does not exist is deleted.
    pub(crate) async fn delete(&self, name: &str) -> Result<()> {
        let url = match self.url(name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let result = self.clients.admin.delete_queue().queue_url(&*url).send().await;
        self.forget(name);
        match self.link.note("delete queue", Words::Shown, result) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.with_context("address", name)),
            _ => Ok(()),
        }
    }

    /// Removes every message of a queue.
    pub(crate) async fn purge(&self, name: &str) -> Result<()> {
        let url = self.url(name).await?;
        let result = self.clients.admin.purge_queue().queue_url(&*url).send().await;
        self.link.note("purge queue", Words::Shown, result).map(drop).map_err(|e| self.failed(name, e))
    }

    /// Adds the queue to an error, and forgets the URL of one that is gone.
    pub(crate) fn failed(&self, name: &str, error: Error) -> Error {
        if error.kind() == ErrorKind::NotFound {
            self.forget(name);
        }
        error.with_context("address", name)
    }
}

/// The attributes that an entry asks for explicitly.
fn asked(entry: &Entry) -> Result<BTreeMap<String, String>> {
    let mut asked = entry.native.clone();
    if let Some(retention) = entry.retention {
        let seconds = retention.as_secs();
        if !(60..=1_209_600).contains(&seconds) {
            return Err(Error::new(ErrorKind::InvalidInput, "an SQS queue keeps messages for 60 s to 14 days")
                .with_context("address", &entry.address)
                .with_context("retention", format!("{retention:?}")));
        }
        asked.insert("MessageRetentionPeriod".to_owned(), seconds.to_string());
    }
    Ok(asked)
}

fn with_backstop(mut attributes: BTreeMap<String, String>, policy: String) -> BTreeMap<String, String> {
    attributes.entry("RedrivePolicy".to_owned()).or_insert(policy);
    attributes
}

/// Whether two values of an attribute say the same: policies are JSON, whose blanks and quotes around numbers vary.
fn same(found: &str, wanted: &str) -> bool {
    let bare = |text: &str| text.chars().filter(|c| !c.is_whitespace() && *c != '"').collect::<String>();
    found == wanted || (found.starts_with('{') && bare(found) == bare(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_sqs_refuses_never_reach_it() {
        for name in ["orders", "a_b-c9", "orders.fifo", &"x".repeat(80), &format!("{}.fifo", "x".repeat(75))] {
            assert!(name_of(&name.parse().unwrap()).is_ok(), "{name}");
        }
        for name in ["orders.v1", "bücher", ".fifo", "a.fifo.b", &"x".repeat(81), &format!("{}.fifo", "x".repeat(76))]
        {
            let error = name_of(&name.parse().unwrap()).map(str::to_owned).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(name_of(&"topic:orders".parse().unwrap()).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn policies_are_compared_by_content() {
        assert!(same(r#"{"a":"b","n":3}"#, r#"{ "a": "b", "n": "3" }"#));
        assert!(!same("30", "31"));
    }
}
