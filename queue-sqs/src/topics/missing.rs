//! Topics where the feature `sns` is not switched on: there are none.

use std::sync::Arc;

use aws_config::SdkConfig;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry as Entry;
use queue_core::{Endpoint, Error, Events, Result};

use crate::config::SqsConfig;
use crate::door::Verdicts;
use crate::link::Link;
use crate::queues::Queues;

/// No broker has them.
pub(crate) enum Topics {}

/// The error of a broker that has no topics.
pub(crate) fn unsupported() -> Error {
    Error::unsupported("this broker has no topics").with_context("topics_need", NEED)
}

/// What would bring topics to a broker that has none.
pub(crate) const NEED: &str = "the feature `sns` of queue-sqs (`sqs-sns` of the facade)";

/// A policy without what was added to it: nothing was.
pub(crate) fn without_ours(policy: &str) -> Option<String> {
    Some(policy.to_owned())
}

pub(crate) fn connect(_: &SdkConfig, _: &Endpoint, _: &SqsConfig, _: &Events) -> Option<Topics> {
    None
}

impl Topics {
    pub(crate) fn link(&self) -> &Arc<Link> {
        match *self {}
    }

    pub(crate) async fn arn(&self, _name: &str) -> Result<Arc<str>> {
        match *self {}
    }

    pub(crate) async fn locate(&self, _name: &str) -> Result<Arc<str>> {
        match *self {}
    }

    pub(crate) async fn ensure(&self, _name: &str, _create: bool) -> Result<()> {
        match *self {}
    }

    pub(crate) async fn subscribe(&self, _: &Queues, _name: &str, _queue: &str, _create: bool) -> Result<()> {
        match *self {}
    }

    pub(crate) async fn policy_of_new(&self, _name: &str, _queue: &str, _: Option<&str>) -> Result<Option<String>> {
        match *self {}
    }

    pub(crate) async fn groups(&self, _: &Queues, _name: &str) -> Result<Vec<String>> {
        match *self {}
    }

    pub(crate) async fn delete(&self, _name: &str) -> Result<()> {
        match *self {}
    }

    pub(crate) async fn publish(&self, _name: &str, _arn: &str, _: Vec<Entry>) -> Result<Verdicts> {
        match *self {}
    }
}
