//! What an address may be: the name of a queue, its URL or its ARN.

use queue_core::{Address, Error, ErrorKind, Result};

/// The longest name, `.fifo` included.
const MAX_NAME: usize = 80;
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
    } else if let Some(rest) = text.strip_prefix("arn:") {
        of_arn(rest)?
    } else {
        Place { name: text, account: None, region: None, is_url: false, is_arn: false }
    };
    let account = place.account.is_none_or(|a| a.len() == ACCOUNT && a.bytes().all(|b| b.is_ascii_digit()));
    (account && is_name(place.name)).then_some(place)
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
fn region_of(host: &str) -> Option<&str> {
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

/// `PARTITION:sqs:REGION:ACCOUNT:NAME`.
fn of_arn(rest: &str) -> Option<Place<'_>> {
    let parts: Vec<&str> = rest.split(':').collect();
    match parts[..] {
        [partition, "sqs", region, account, name] if !partition.is_empty() && !region.is_empty() => {
            Some(Place { name, account: Some(account), region: Some(region), is_url: false, is_arn: true })
        }
        _ => None,
    }
}

fn is_name(name: &str) -> bool {
    let stem = name.strip_suffix(FIFO).unwrap_or(name);
    !stem.is_empty()
        && name.len() <= MAX_NAME
        && stem.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// The text of an address that stands for a queue.
pub(crate) fn name_of(address: &Address) -> Result<&str> {
    if address.is_topic() {
        return Err(Error::unsupported("SQS has queues only").with_context("address", address));
    }
    if place(address.name()).is_some() {
        return Ok(address.name());
    }
    let why = "the name of an SQS queue has 1 to 80 letters, digits, - and _, and may end in .fifo; \
               its URL ends in account and name, its ARN is arn:aws:sqs:REGION:ACCOUNT:NAME";
    Err(Error::new(ErrorKind::InvalidInput, why).with_context("address", address))
}

/// Whether the queue of this name, URL or ARN is a FIFO queue.
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
