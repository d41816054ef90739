//! `docs/kafka.md` names every option, with the default that it has.

use std::collections::BTreeMap;
use std::time::Duration;

use queue_core::{Endpoint, Error, ErrorKind, Events, option_names};
use queue_kafka::{DRIVER, KafkaConfig};

const PAGE: &str = include_str!("../../docs/kafka.md");
/// What the page says of an option that is not set by default.
const NONE: &str = "none";

/// The cells of the tables of a section, row by row, without the heads.
fn rows(title: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let section = PAGE.split(&format!("\n## {title}\n")).nth(1).expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect())
}

/// Options and defaults as the page says.
fn documented() -> BTreeMap<&'static str, &'static str> {
    rows("Options").map(|cells| (cells[0].trim_matches('`'), cells[1].trim_matches('`'))).collect()
}

#[test]
fn the_page_names_every_option_and_no_other() {
    // A pattern, not a name.
    let names: Vec<_> = documented().into_keys().filter(|name| !name.contains('<')).collect();
    let mut options = option_names::<KafkaConfig>().to_vec();
    options.sort_unstable();
    assert_eq!(names, options);
}

#[test]
fn each_default_on_the_page_is_the_default() {
    let documented = documented();
    let set = documented.iter().filter(|(_, value)| **value != NONE);
    let query: Vec<_> = set.map(|(name, value)| format!("{name}={value}")).collect();
    assert!(!query.is_empty());
    let shown = format!("{:?}", KafkaConfig::default());
    for scheme in DRIVER.schemes {
        let endpoint: Endpoint = format!("{scheme}://localhost?{}", query.join("&")).parse().unwrap();
        assert_eq!(format!("{:?}", endpoint.options::<KafkaConfig>().unwrap()), shown);
    }
    for (name, _) in documented.iter().filter(|(name, value)| **value == NONE && !name.contains('<')) {
        assert!(shown.contains(&format!("{name}: None")), "{name} is set in {shown}");
    }
}

/// What comes of connecting with an option of librdkafka, where nobody listens.
async fn refusal(option: &str, value: &str) -> Error {
    let mut endpoint: Endpoint = "kafka://127.0.0.1:1".parse().unwrap();
    endpoint.native.insert(option.to_owned(), value.to_owned());
    endpoint.connect_timeout = Duration::from_millis(50);
    (DRIVER.connect)(endpoint, Events::new()).await.map(drop).expect_err("nobody listens")
}

#[tokio::test]
async fn options_of_librdkafka_can_be_changed_where_the_page_says_so() {
    let mut count = 0;
    for cells in rows("Native options") {
        let [names, value, answer] = cells[..] else { panic!("{cells:?}") };
        for name in names.split(", ").map(|name| name.trim_matches('`')) {
            count += 1;
            match answer {
                "no" => {
                    // Another value than the one that stands.
                    let error = refusal(name, "1").await;
                    assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some(name)));
                }
                "yes" => {
                    let value = value.strip_prefix('`').and_then(|rest| rest.split('`').next());
                    let value = match value.unwrap_or_default() {
                        "prefetch" | "prefetch_bytes" => "1000",
                        value => value,
                    };
                    let error = refusal(name, value).await;
                    assert_eq!(error.kind(), ErrorKind::Connection, "{name}: {error}");
                }
                other => panic!("{name}: {other}"),
            }
        }
    }
    assert!(count > 25, "{count}");
}
