//! Queues: their URLs, their attributes, and what is done to them as a whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use parking_lot::RwLock;
use queue_core::{Error, ErrorKind, Result};

use crate::address::{Place, place};
use crate::config::Clients;
use crate::error::Words;
use crate::link::Link;
use crate::topology::{self, Native};

/// The queues of one account, as far as they were asked for.
pub(crate) struct Queues {
    clients: Clients,
    link: Arc<Link>,
    account: Option<String>,
    /// What queues are made with, unless they say otherwise.
    pub(crate) defaults: Native,
    /// By what their addresses say.
    urls: RwLock<HashMap<Box<str>, Arc<str>>>,
}

impl Queues {
    pub(crate) fn new(clients: Clients, link: Arc<Link>, account: Option<String>, defaults: Native) -> Self {
        Self { clients, link, account, defaults, urls: RwLock::default() }
    }

    /// The URL of a queue; asked once. One that is the address needs no asking.
    pub(crate) async fn url(&self, name: &str) -> Result<Arc<str>> {
        if let Some(url) = self.urls.read().get(name) {
            return Ok(url.clone());
        }
        let place = self.place(name)?;
        if place.is_url { Ok(name.into()) } else { self.ask(name, place.name).await }
    }

    /// The URL of a queue that exists now; always asked.
    pub(crate) async fn find(&self, name: &str) -> Result<Arc<str>> {
        let place = self.place(name)?;
        if place.is_url {
            self.attributes_at(name, name, &[Attribute::QueueArn]).await?;
            return Ok(name.into());
        }
        self.ask(name, place.name).await
    }

    async fn ask(&self, name: &str, bare: &str) -> Result<Arc<str>> {
        let request = self.clients.admin.get_queue_url().queue_name(bare);
        let result = request.set_queue_owner_aws_account_id(self.account_of(name)).send().await;
        let output = self.link.note("find queue", Words::Shown, result).map_err(|e| self.failed(name, e))?;
        let url: Arc<str> = output.queue_url.unwrap_or_default().into();
        self.urls.write().insert(name.into(), url.clone());
        Ok(url)
    }

    /// The account of the queue, where it is named: by its address, or by the connection's options.
    pub(crate) fn account_of(&self, name: &str) -> Option<String> {
        let own = place(name).and_then(|place| place.account.map(str::to_owned));
        own.or_else(|| self.account.clone())
    }

    /// Where the queue is. A client speaks to one region: the queue of that name there would be another one.
    fn place<'a>(&self, name: &'a str) -> Result<Place<'a>> {
        let place = place(name).ok_or_else(|| {
            Error::new(ErrorKind::Internal, "the address was not checked").with_context("address", name)
        })?;
        let region = self.clients.admin.config().region().map(AsRef::as_ref);
        match (place.region, region) {
            (Some(asked), Some(own)) if asked != own => {
                Err(Error::new(ErrorKind::InvalidInput, "the queue is in another region than the client")
                    .with_context("address", name)
                    .with_context("region", asked)
                    .with_context("client_region", own))
            }
            _ => Ok(place),
        }
    }

    /// Forgets the URL of a queue that is gone.
    pub(crate) fn forget(&self, name: &str) {
        self.urls.write().remove(name);
    }

    /// The attributes of a queue.
    pub(crate) async fn attributes(&self, name: &str, which: &[Attribute]) -> Result<HashMap<Attribute, String>> {
        let url = self.url(name).await?;
        self.attributes_at(name, &url, which).await
    }

    async fn attributes_at(&self, name: &str, url: &str, which: &[Attribute]) -> Result<HashMap<Attribute, String>> {
        let request = self.clients.admin.get_queue_attributes().queue_url(url);
        let result = request.set_attribute_names(Some(which.to_vec())).send().await;
        match self.link.note("read attributes", Words::Shown, result) {
            Ok(output) => Ok(output.attributes.unwrap_or_default()),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    /// Has a queue keep another policy.
    #[cfg(feature = "sns")]
    pub(crate) async fn set_policy(&self, name: &str, policy: &str) -> Result<()> {
        let url = self.url(name).await?;
        let request = self.clients.admin.set_queue_attributes().queue_url(&*url);
        let result = request.attributes(Attribute::Policy, policy).send().await;
        self.link.note("set policy", Words::Shown, result).map(drop).map_err(|e| self.failed(name, e))
    }

    /// The tags of a queue.
    pub(crate) async fn tags(&self, name: &str) -> Result<HashMap<String, String>> {
        let url = self.url(name).await?;
        let result = self.clients.admin.list_queue_tags().queue_url(&*url).send().await;
        match self.link.note("read tags", Words::Shown, result) {
            Ok(output) => Ok(output.tags.unwrap_or_default()),
            Err(error) => Err(self.failed(name, error)),
        }
    }

    /// Creates a queue.
    pub(crate) async fn create(
        &self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        tags: &BTreeMap<String, String>,
    ) -> Result<()> {
        let tags = tags.iter().map(|(name, value)| (name.clone(), value.clone()));
        let result = self
            .clients
            .admin
            .create_queue()
            .queue_name(name)
            .set_attributes(topology::attributes(attributes))
            .set_tags(Some(tags.collect()).filter(|tags: &HashMap<_, _>| !tags.is_empty()))
            .send()
            .await;
        let output =
            self.link.note("create queue", Words::Shown, result).map_err(|e| e.with_context("address", name))?;
        if let Some(url) = output.queue_url {
            self.urls.write().insert(name.into(), url.into());
        }
        Ok(())
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

    /// The names of queues that begin so, up to a thousand.
    pub(crate) async fn beginning_with(&self, prefix: &str) -> Result<Vec<String>> {
        let result = self.clients.admin.list_queues().queue_name_prefix(prefix).max_results(1000).send().await;
        let output = self.link.note("list queues", Words::Shown, result)?;
        let names = output.queue_urls.unwrap_or_default();
        Ok(names.iter().filter_map(|url| Some(url.rsplit_once('/')?.1.to_owned())).collect())
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
