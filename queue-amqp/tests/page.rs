//! `docs/amqp.md` names every option, with the default that it has.

use std::collections::BTreeMap;

use queue_amqp::{AmqpConfig, DRIVER};
use queue_core::{Endpoint, option_names};

const PAGE: &str = include_str!("../../docs/amqp.md");
/// What the page says of an option that is not set by default.
const NONE: &str = "none";

/// Options and defaults as the page says.
fn documented() -> BTreeMap<&'static str, &'static str> {
    let section = PAGE.split("\n## Options\n").nth(1).expect("a section on options");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    rows.map(|line| {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        (cells[1], cells[2])
    })
    .collect()
}

#[test]
fn the_page_names_every_option_and_no_other() {
    // A pattern, not a name.
    let names: Vec<_> = documented().into_keys().filter(|name| !name.contains('<')).collect();
    let mut options = option_names::<AmqpConfig>().to_vec();
    options.sort_unstable();
    assert_eq!(names, options);
}

#[test]
fn each_default_on_the_page_is_the_default() {
    let documented = documented();
    let set = documented.iter().filter(|(_, value)| **value != NONE);
    let query: Vec<_> = set.map(|(name, value)| format!("{name}={value}")).collect();
    assert!(!query.is_empty());
    for scheme in DRIVER.schemes {
        let endpoint: Endpoint = format!("{scheme}://localhost?{}", query.join("&")).parse().unwrap();
        assert_eq!(endpoint.options::<AmqpConfig>().unwrap(), AmqpConfig::default());
    }
    let shown = format!("{:?}", AmqpConfig::default());
    for (name, _) in documented.iter().filter(|(name, value)| **value == NONE && !name.contains('<')) {
        assert!(shown.contains(&format!("{name}: None")), "{name} is set in {shown}");
    }
}
