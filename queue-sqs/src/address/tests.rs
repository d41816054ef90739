use super::*;

#[test]
fn names_that_sqs_refuses_never_reach_it() {
    for name in ["orders", "a_b-c9", "orders.fifo", &"x".repeat(80), &format!("{}.fifo", "x".repeat(75))] {
        assert_eq!(name_of(&name.parse().unwrap()).unwrap(), name);
    }
    for name in ["orders.v1", "bücher", ".fifo", "a.fifo.b", &"x".repeat(81), &format!("{}.fifo", "x".repeat(76))] {
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
    for text in ["topic:orders", "topic:orders.fifo", &long, "topic:arn:aws-cn:sns:cn-north-1:123456789012:orders"] {
        let address: Address = text.parse().unwrap();
        let target = Target::of(&address).unwrap();
        assert!(target.is(&address) && target.kind.topic && target.kind.fifo == text.ends_with(".fifo"));
    }
    for text in ["topic:orders.v1", "topic:https://h/123456789012/orders", "topic:arn:aws:sqs:r:123456789012:orders"] {
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
        (format!("https://sqs.eusc-de-east-1.amazonaws.eu{tail}"), Some("eusc-de-east-1")),
        (format!("https://sqs.us-iso-east-1.c2s.ic.gov{tail}"), Some("us-iso-east-1")),
        (format!("https://sqs.us-isob-east-1.sc2s.sgov.gov{tail}"), Some("us-isob-east-1")),
        (format!("https://sqs.cn-north-1.api.amazonwebservices.com.cn{tail}"), Some("cn-north-1")),
        (format!("https://vpce-1-2.sqs.cn-north-1.vpce.amazonaws.com.cn{tail}"), Some("cn-north-1")),
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
        "arn:aws:sns:eu-west-1:123456789012:orders-dlq",
        "arn:aws:sqs::123456789012:orders",
        "arn:aws:sqs:eu-west-1:me:orders",
        "arn:aws:sqs:eu-west-1:123456789012:orders:more",
    ] {
        let address: Address = text.parse().unwrap();
        let refused = name_of(&address).map(str::to_owned).map_err(|e| e.kind());
        assert_eq!(refused, Err(ErrorKind::InvalidInput), "{text}");
    }
}
