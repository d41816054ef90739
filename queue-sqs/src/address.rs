//! What an address may be: the name of a queue, its URL or its ARN; the name of a topic or its ARN.

use std::sync::Arc;

use queue_core::{Address, Error, ErrorKind, Result, Source};

/// The longest name of a queue, `.fifo` included.
const MAX_NAME: usize = 80;
/// The longest name of a topic, `.fifo` included.
const MAX_TOPIC: usize = 256;
const FIFO: &str = ".fifo";
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

/// `sqs.REGION.amazonaws.com`, the same of other partitions, of FIPS, of IPv6 and of endpoints of a VPC, and the old
/// `REGION.queue.amazonaws.com` and `queue.amazonaws.com`. Hosts that are not Amazon's tell no region.
pub(crate) fn region_of(host: &str) -> Option<&str> {
    const OLD: &str = "us-east-1";
    if host == "queue.amazonaws.com" {
        return Some(OLD);
    }
    let stem = [".vpce.amazonaws.com", ".amazonaws.com.cn", ".amazonaws.com", ".api.aws"]
        .iter()
        .find_map(|suffix| host.strip_suffix(suffix))?;
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
/// they are the subscriber's own, wherever the topic is.
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
mod tests {
    use super::*;

    #[test]
    fn names_that_sqs_refuses_never_reach_it() {
        for name in ["orders", "a_b-c9", "orders.fifo", &"x".repeat(80), &format!("{}.fifo", "x".repeat(75))] {
            assert_eq!(name_of(&name.parse().unwrap()).unwrap(), name);
        }
        for name in ["orders.v1", "bücher", ".fifo", "a.fifo.b", &"x".repeat(81), &format!("{}.fifo", "x".repeat(76))]
        {
            let error = name_of(&name.parse().unwrap()).map(str::to_owned).expect_err(name);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(name_of(&"topic:orders".parse().unwrap()).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_group_of_a_topic_is_a_queue_of_its_own() {
        let arn = "topic:arn:aws:sns:eu-west-1:123456789012:orders.fifo";
        for (topic, queue, dead) in [
            ("topic:orders", "orders--billing", "orders--billing-dlq"),
            ("topic:orders.fifo", "orders--billing.fifo", "orders--billing-dlq.fifo"),
            (arn, "orders--billing.fifo", "orders--billing-dlq.fifo"),
        ] {
            let source = Source::new(topic.parse().unwrap()).with_group("billing").unwrap();
            assert_eq!(queue_of(&source).unwrap(), queue);
            assert_eq!(name_of(&source.dead_letter().unwrap()).unwrap(), dead);
        }
        let source = |address: &str, group: Option<&str>| {
            let source = Source::new(address.parse().unwrap());
            queue_of(&match group {
                Some(group) => source.with_group(group).unwrap(),
                None => source,
            })
            .map_err(|e| e.kind())
        };
        assert_eq!(source("topic:orders", None), Err(ErrorKind::Unsupported));
        assert_eq!(source("orders", Some("billing")), Err(ErrorKind::Unsupported));
        assert_eq!(source("topic:orders", Some(&"x".repeat(80))), Err(ErrorKind::InvalidInput));
        assert_eq!(source("topic:orders", Some("bücher")), Err(ErrorKind::InvalidInput));
    }

    #[test]
    fn topics_go_by_name_and_arn() {
        let long = format!("topic:{}", "x".repeat(249));
        for text in ["topic:orders", "topic:orders.fifo", &long, "topic:arn:aws-cn:sns:cn-north-1:123456789012:orders"]
        {
            let address: Address = text.parse().unwrap();
            let target = Target::of(&address).unwrap();
            assert!(target.is(&address) && target.kind.topic && target.kind.fifo == text.ends_with(".fifo"));
        }
        for text in
            ["topic:orders.v1", "topic:https://h/123456789012/orders", "topic:arn:aws:sqs:r:123456789012:orders"]
        {
            let refused = Target::of(&text.parse().unwrap()).map_err(|e| e.kind());
            assert_eq!(refused, Err(ErrorKind::InvalidInput), "{text}");
        }
        assert!(!Target::of(&"orders".parse().unwrap()).unwrap().is(&"topic:orders".parse().unwrap()));
    }

    #[test]
    fn urls_and_arns_tell_name_account_and_region() {
        let tail = "/123456789012/orders.fifo";
        for (text, region) in [
            (format!("https://sqs.eu-west-1.amazonaws.com{tail}"), Some("eu-west-1")),
            (format!("https://sqs.cn-north-1.amazonaws.com.cn{tail}"), Some("cn-north-1")),
            (format!("https://sqs-fips.us-gov-west-1.amazonaws.com{tail}"), Some("us-gov-west-1")),
            (format!("https://sqs.eu-west-1.api.aws{tail}"), Some("eu-west-1")),
            (format!("https://vpce-1-2.sqs.eu-west-1.vpce.amazonaws.com{tail}"), Some("eu-west-1")),
            (format!("https://eu-west-1.queue.amazonaws.com{tail}"), Some("eu-west-1")),
            (format!("https://queue.amazonaws.com{tail}"), Some("us-east-1")),
            (format!("http://localhost:9324{tail}"), None),
            (format!("http://localhost:4566/queue/us-east-1{tail}"), None),
            ("arn:aws-cn:sqs:cn-north-1:123456789012:orders.fifo".to_owned(), Some("cn-north-1")),
        ] {
            let address: Address = text.parse().unwrap();
            let place = place(name_of(&address).unwrap()).unwrap();
            assert_eq!((place.name, place.account), ("orders.fifo", Some("123456789012")), "{text}");
            assert_eq!((place.region, place.is_arn), (region, text.starts_with("arn:")), "{text}");
            assert!(place.is_url != place.is_arn && is_fifo(address.name()));
            // The dead letters' queue is beside it.
            assert!(address.dead_letter().name().ends_with("orders-dlq.fifo"));
            assert!(name_of(&address.dead_letter()).is_ok());
        }
    }

    #[test]
    fn what_is_no_url_or_arn_of_a_queue_is_refused() {
        for text in [
            "https://sqs.eu-west-1.amazonaws.com/orders",
            "https://sqs.eu-west-1.amazonaws.com/12345678901/orders",
            "https://sqs.eu-west-1.amazonaws.com/123456789012/",
            "https://sqs.eu-west-1.amazonaws.com/123456789012/or.ders",
            "https:///123456789012/orders",
            "https://user:word@host/123456789012/orders",
            "ftp://host/123456789012/orders",
            "arn:aws:sns:eu-west-1:123456789012:orders",
            "arn:aws:sqs::123456789012:orders",
            "arn:aws:sqs:eu-west-1:me:orders",
            "arn:aws:sqs:eu-west-1:123456789012:orders:more",
        ] {
            let address: Address = text.parse().unwrap();
            let refused = name_of(&address).map(str::to_owned).map_err(|e| e.kind());
            assert_eq!(refused, Err(ErrorKind::InvalidInput), "{text}");
        }
    }
}
