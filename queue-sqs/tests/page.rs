//! `docs/sqs.md` names every option, with the default that it has, and every option of a queue.

use std::collections::BTreeMap;

use queue_core::{Endpoint, Error, ErrorKind, Events, option_names};
use queue_sqs::{DRIVER, SqsConfig};

const PAGE: &str = include_str!("../../docs/sqs.md");
/// The program on the page, which the tests with boto3 run.
const READER: &str = include_str!("interop/note.py");
/// The cells of the tables of a section, row by row, without the heads.
fn rows(title: &str) -> impl Iterator<Item = Vec<&'static str>> {
    let section = PAGE.split(&format!("\n## {title}\n")).nth(1).expect("the section is there");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| line.split('|').map(str::trim).filter(|cell| !cell.is_empty()).collect())
}

/// Options and defaults as the page says: of one that is not set by default it has words, and no value.
fn documented() -> BTreeMap<&'static str, Option<&'static str>> {
    let value = |cell: &'static str| cell.strip_prefix('`')?.strip_suffix('`');
    rows("Options").map(|cells| (cells[0].trim_matches('`'), value(cells[1]))).collect()
}

#[test]
fn the_page_names_every_option_and_no_other() {
    // A pattern, not a name.
    let names: Vec<_> = documented().into_keys().filter(|name| !name.contains('<')).collect();
    let mut options = option_names::<SqsConfig>().to_vec();
    options.sort_unstable();
    assert_eq!(names, options);
}

#[test]
fn each_default_on_the_page_is_the_default() {
    let documented = documented();
    let query: Vec<_> = documented.iter().filter_map(|(name, value)| Some(format!("{name}={}", (*value)?))).collect();
    assert!(!query.is_empty());
    let shown = format!("{:?}", SqsConfig::default());
    let endpoint: Endpoint = format!("sqs://localhost?{}", query.join("&")).parse().unwrap();
    assert_eq!(format!("{:?}", endpoint.options::<SqsConfig>().unwrap()), shown);
    for (name, _) in documented.iter().filter(|(name, value)| value.is_none() && !name.contains('<')) {
        assert!(shown.contains(&format!("{name}: None")), "{name} is set in {shown}");
    }
}

/// What comes of connecting with an option of queues, where nobody listens.
async fn refusal(option: &str, value: &str) -> Error {
    let url = "sqs://127.0.0.1:1?region=us-east-1&access_key=test&secret_key=test";
    let mut endpoint: Endpoint = url.parse().unwrap();
    endpoint.native.insert(option.to_owned(), value.to_owned());
    (DRIVER.connect)(endpoint, Events::new()).await.map(drop).expect_err("nobody listens")
}

#[tokio::test]
async fn each_option_of_a_queue_takes_the_values_that_the_page_names() {
    let mut count = 0;
    let mut known = Vec::new();
    for cells in rows("Queues") {
        let [name, values, ..] = cells[..] else { panic!("{cells:?}") };
        let name = name.trim_matches('`');
        count += 1;
        known.push(name);
        let (good, bad): (Vec<&str>, Vec<String>) = match values.split_once(" to ") {
            Some((least, most)) => {
                let beyond = most.parse::<u32>().unwrap() + 1;
                (vec![least, most], vec![beyond.to_string(), "-1".to_owned(), "x".to_owned()])
            }
            None if values == "JSON" => (vec![r#"{"a": 1}"#], vec!["x".to_owned(), "[]".to_owned()]),
            None if values == "a text" => (vec!["x"], Vec::new()),
            None => (values.split(", ").map(|value| value.trim_matches('`')).collect(), vec!["x".to_owned()]),
        };
        if name == "RedrivePolicy" {
            // Of one queue, not of a connection.
            assert_eq!(refusal(name, good[0]).await.context("option"), Some(name));
            continue;
        }
        for value in good {
            let error = refusal(name, value).await;
            assert_eq!(error.kind(), ErrorKind::Connection, "{name}={value}: {error}");
        }
        for value in bad {
            let error = refusal(name, &value).await;
            assert_eq!((error.kind(), error.context("option")), (ErrorKind::InvalidConfig, Some(name)), "{value}");
        }
    }
    assert_eq!(count, 14, "{known:?}");
    // And no other.
    let error = refusal("qqq", "x").await;
    let mut all: Vec<_> = error.context("known").expect("a list").split(", ").collect();
    all.sort_unstable();
    known.sort_unstable();
    assert_eq!(all, known.iter().map(|name| name.replace("<name>", "NAME")).collect::<Vec<_>>());
}

#[test]
fn the_program_on_the_page_is_the_one_that_the_tests_run() {
    assert!(PAGE.contains(&format!("```python\n{READER}```\n")), "the page shows another note.py");
}
