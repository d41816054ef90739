//! What an address may be: the name of a queue, its URL or its ARN; the name of a topic or its ARN.

use std::sync::Arc;

use queue_core::{Address, Error, ErrorKind, Result, Source};

/// The longest name of a queue, `.fifo` included.
const MAX_NAME: usize = 80;
/// The longest name of a topic, `.fifo` included.
const MAX_TOPIC: usize = 256;
const FIFO: &str = ".fifo";
/// What the names of Amazon's own hosts end in, of one IP and of both.
const SUFFIXES: &[&str] = &[
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".c2s.ic.gov",
    ".sc2s.sgov.gov",
    ".cloud.adc-e.uk",
    ".csp.hci.ic.gov",
    ".api.aws",
    ".api.amazonwebservices.com.cn",
    ".api.amazonwebservices.eu",
    ".api.aws.ic.gov",
    ".api.aws.scloud",
    ".api.cloud-aws.adc-e.uk",
    ".api.aws.hci.ic.gov",
];
/// Digits of the number of an account.
const ACCOUNT: usize = 12;

/// A queue, as far as its address tells where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) name: &'a str,
    /// Of a URL or an ARN. Such a queue is some account's: it is never created, since a request can make queues in its
    /// own account only.
    pub(crate) account: Option<&'a str>,
    /// Of an ARN, and of a URL of Amazon's own.
    pub(crate) region: Option<&'a str>,
    /// Whether the text is the queue's URL.
    pub(crate) is_url: bool,
    /// Whether the text is the queue's ARN.
    pub(crate) is_arn: bool,
}

/// Reads the text of an address.
pub(crate) fn place(text: &str) -> Option<Place<'_>> {
    let place = if let Some((_, rest)) = text.split_once("://").filter(|(s, _)| matches!(*s, "http" | "https")) {
        of_url(rest)?
    } else {
        of_name("sqs", text)?
    };
    place.is_of(MAX_NAME).then_some(place)
}

/// Reads the text of the address of a topic.
pub(crate) fn topic_place(text: &str) -> Option<Place<'_>> {
    of_name("sns", text).filter(|place| place.is_of(MAX_TOPIC))
}

impl Place<'_> {
    /// Whether account and name are such, the name not longer than this.
    fn is_of(&self, longest: usize) -> bool {
        let account = self.account.is_none_or(|a| a.len() == ACCOUNT && a.bytes().all(|b| b.is_ascii_digit()));
        account && is_name(self.name, longest)
    }
}

/// A name, or an ARN of this service.
fn of_name<'a>(service: &str, text: &'a str) -> Option<Place<'a>> {
    match text.strip_prefix("arn:") {
        Some(rest) => of_arn(service, rest),
        None => Some(Place { name: text, account: None, region: None, is_url: false, is_arn: false }),
    }
}

/// Host, and a path that ends in account and name: emulators put more before.
fn of_url(rest: &str) -> Option<Place<'_>> {
    let (before, name) = rest.rsplit_once('/')?;
    let (before, account) = before.rsplit_once('/')?;
    let host = before.split('/').next().unwrap_or_default();
    if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b)) {
        return None;
    }
    Some(Place { name, account: Some(account), region: region_of(host), is_url: true, is_arn: false })
}

/// `sqs.REGION.amazonaws.com`, the same of other partitions, of FIPS, of both IPs and of endpoints of a VPC, and the old
/// `REGION.queue.amazonaws.com` and `queue.amazonaws.com`. Hosts that are not Amazon's tell no region.
pub(crate) fn region_of(host: &str) -> Option<&str> {
    const OLD: &str = "us-east-1";
    if host == "queue.amazonaws.com" {
        return Some(OLD);
    }
    let stem = SUFFIXES.iter().find_map(|suffix| host.strip_suffix(suffix))?;
    if let Some(region) = stem.strip_suffix(".queue") {
        return Some(region);
    }
    let labels: Vec<&str> = stem.split('.').collect();
    labels.windows(2).find(|pair| matches!(pair[0], "sqs" | "sqs-fips")).map(|pair| pair[1])
}

/// `PARTITION:SERVICE:REGION:ACCOUNT:NAME`.
fn of_arn<'a>(service: &str, rest: &'a str) -> Option<Place<'a>> {
    let parts: Vec<&str> = rest.split(':').collect();
    match parts[..] {
        [partition, of, region, account, name] if of == service && !partition.is_empty() && !region.is_empty() => {
            Some(Place { name, account: Some(account), region: Some(region), is_url: false, is_arn: true })
        }
        _ => None,
    }
}

fn is_name(name: &str, longest: usize) -> bool {
    let stem = name.strip_suffix(FIFO).unwrap_or(name);
    !stem.is_empty()
        && name.len() <= longest
        && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The text of an address that stands for a queue.
pub(crate) fn name_of(address: &Address) -> Result<&str> {
    if address.is_topic() {
        return Err(
            Error::unsupported("this is for queues, and the address is a topic's").with_context("address", address)
        );
    }
    let name = of_group(address.name());
    if place(name).is_some() {
        return Ok(name);
    }
    let why = "the name of an SQS queue has 1 to 80 letters, digits, - and _, and may end in .fifo; \
               its URL ends in account and name, its ARN is arn:aws:sqs:REGION:ACCOUNT:NAME";
    Err(Error::new(ErrorKind::InvalidInput, why).with_context("address", address))
}

/// The queue of a group, and that of its dead letters, whose names begin with the topic's ARN where that is the address:
/// they are the subscriber's own, wherever the topic is. Nobody gives such an address: `--` is the library's.
fn of_group(name: &str) -> &str {
    match topic_place(name) {
        Some(place) if place.is_arn && place.name.contains("--") => place.name,
        _ => name,
    }
}

/// The queue that is received from: the address itself, or that of the topic's group.
pub(crate) fn queue_of(source: &Source) -> Result<String> {
    let address = &source.address;
    let unsupported = |why| Err(Error::unsupported(why).with_context("address", address));
    match (address.is_topic(), &source.group) {
        (false, None) => name_of(address).map(str::to_owned),
        (false, Some(_)) => unsupported("an SQS queue has no groups"),
        (true, None) => unsupported("a topic is received from by a group: SNS keeps nothing for those without"),
        (true, Some(_)) => {
            let topic = topic_name_of(address)?;
            let name = source.queue_name().unwrap_or_default();
            match of_group(&name) {
                queue if is_name(queue, MAX_NAME) => Ok(queue.to_owned()),
                queue => Err(Error::new(
                    ErrorKind::InvalidInput,
                    "topic and group name a queue, <topic>--<group>, of 1 to 80 letters, digits, - and _",
                )
                .with_context("address", topic)
                .with_context("queue", queue)),
            }
        }
    }
}

/// The text of an address that stands for a topic.
pub(crate) fn topic_name_of(address: &Address) -> Result<&str> {
    if topic_place(address.name()).is_some() {
        return Ok(address.name());
    }
    let why = "the name of an SNS topic has 1 to 256 letters, digits, - and _, and may end in .fifo; \
               its ARN is arn:aws:sns:REGION:ACCOUNT:NAME";
    Err(Error::new(ErrorKind::InvalidInput, why).with_context("address", address))
}

/// What messages are sent to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    /// As the address says it.
    pub(crate) name: Arc<str>,
    pub(crate) kind: Kind,
}

/// What a target is, as far as messages for it differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub(crate) topic: bool,
    pub(crate) fifo: bool,
}

impl Target {
    /// Reads an address.
    pub(crate) fn of(address: &Address) -> Result<Self> {
        let topic = address.is_topic();
        let name = if topic { topic_name_of(address)? } else { name_of(address)? };
        Ok(Self { name: name.into(), kind: Kind { topic, fifo: is_fifo(name) } })
    }

    /// Whether the address says the same.
    pub(crate) fn is(&self, address: &Address) -> bool {
        self.kind.topic == address.is_topic() && *self.name == *address.name()
    }
}

/// Whether the queue or topic of this name, URL or ARN keeps order.
pub(crate) fn is_fifo(name: &str) -> bool {
    name.ends_with(FIFO)
}

#[cfg(test)]
mod tests;
