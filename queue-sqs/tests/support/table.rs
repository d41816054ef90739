//! The tables of `docs/sqs.md` that say which rights something needs.
#![allow(unreachable_pub, reason = "test binaries share it")]

use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../docs/sqs.md");

/// Actions of IAM on each of the things that the table has a column for.
pub type Rights<const THINGS: usize> = [BTreeSet<String>; THINGS];

/// The text of a section.
pub fn section(heading: &str) -> &'static str {
    let section = PAGE.split(&format!("\n## {heading}\n")).nth(1).expect("the section is there");
    section.split("\n## ").next().unwrap_or_default()
}

/// What is done, and what it needs.
pub fn rows<const THINGS: usize>(section: &'static str) -> Vec<(&'static str, Rights<THINGS>)> {
    let table = section.lines().filter(|line| line.starts_with("| ") && !line.contains("---")).skip(1);
    let actions = |cell: &str| {
        let names = cell.split(", ").map(|name| name.trim().trim_matches('`'));
        names.filter(|name| *name != "–").map(str::to_owned).collect()
    };
    table
        .map(|line| {
            let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 1 + THINGS, "{line}");
            (cells[0], std::array::from_fn(|thing| actions(cells[1 + thing])))
        })
        .collect()
}
