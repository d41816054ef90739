//! `docs/semantics.md` says what is so: its table is compared with the capabilities of the brokers, its lists of cases
//! with those that the conformance suite has. `UPDATE_DOCS=1` rewrites the columns of the brokers that can be reached.
//!
//! The columns of real brokers need the variables that `scripts/brokers env` prints (`ANYQUEUE_TEST_AMQP_URL`, …), and are
//! reported as ignored without. The lists of cases are compared with real runs by the runner of the suite
//! (`ANYQUEUE_CONFORMANCE_DOC`); here it is checked that none is missing and that their numbers add up.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyqueue::conformance::{capability_table, case_names, fault_case_names, section};
use anyqueue::{DRIVERS, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/semantics.md");
const BEGIN: &str = "<!-- generated: capabilities -->\n";
const END: &str = "<!-- end -->";

/// Columns of the table: heading, scheme, and a URL or the variable that holds one.
const COLUMNS: &[(&str, &str, &str)] = &[
    ("memory", "memory", "memory://"),
    ("memory, amqp", "memory", "memory://?profile=amqp"),
    ("memory, kafka", "memory", "memory://?profile=kafka"),
    ("memory, sqs", "memory", "memory://?profile=sqs"),
    ("RabbitMQ", "amqp", "ANYQUEUE_TEST_AMQP_URL"),
    ("RabbitMQ 4", "amqp", "ANYQUEUE_TEST_AMQP4_URL"),
    ("Kafka", "kafka", "ANYQUEUE_TEST_KAFKA_URL"),
    ("SQS", "sqs", "ANYQUEUE_TEST_SQS_URL"),
    ("SQS, SNS", "sqs", "ANYQUEUE_TEST_SNS_URL"),
];

/// Names of the harnesses whose reports are kept.
const REPORTS: &[&str] = &[
    "memory",
    "memory-amqp",
    "memory-kafka",
    "memory-sqs",
    "memory-sqs-fifo",
    "rabbitmq",
    "rabbitmq 4",
    "kafka",
    "sqs",
    "sqs fifo",
    "endpoint",
    "endpoint fifo",
];
/// The same, of runs with faults.
const FAULT_REPORTS: &[&str] = &["rabbitmq, faults", "rabbitmq 4, faults"];
/// Stands in a section until a complete run has filled it.
const UNRECORDED: &str = "Not recorded yet.";

/// The cells of a column, by capability.
type Column = BTreeMap<String, String>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let document = std::fs::read_to_string(PATH).unwrap_or_default();
    let present: Vec<_> = COLUMNS.iter().map(|(name, scheme, url)| (*name, capabilities(name, scheme, url))).collect();
    let document = match std::env::var("UPDATE_DOCS").as_deref() {
        Ok("1") => updated(&document, &present),
        _ => document,
    };
    let mut trials = Vec::new();
    for (name, column) in present {
        let recorded = columns(table(&document)).remove(name);
        trials.push(Trial::ignorable_test(format!("capabilities of {name}"), move || match column {
            Err(Absent::LeftOut(why)) => Ok(Completion::ignored_with(why)),
            Err(Absent::Failed(why)) => Err(why.into()),
            Ok(column) if Some(&column) == recorded.as_ref() => Ok(Completion::Completed),
            Ok(column) => Err(differs(&column, &recorded.unwrap_or_default())),
        }));
    }
    let peaceful = REPORTS.iter().map(|name| (name, case_names()));
    for (name, names) in peaceful.chain(FAULT_REPORTS.iter().map(|name| (name, fault_case_names()))) {
        let report = section(&document, name).map(str::to_owned);
        trials.push(Trial::ignorable_test(format!("cases of {name}"), move || cases_add_up(report, &names)));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Why a column is not compared.
enum Absent {
    LeftOut(String),
    Failed(String),
}

fn capabilities(name: &str, scheme: &str, url: &str) -> Result<Column, Absent> {
    if !DRIVERS.iter().any(|driver| driver.schemes.contains(&scheme)) {
        return Err(Absent::LeftOut(format!("built without the feature {scheme}")));
    }
    let url = match url.contains("://") {
        true => url.to_owned(),
        false => std::env::var(url).map_err(|_| Absent::LeftOut(format!("set {url} to the URL of a broker")))?,
    };
    let failed = |e: &dyn std::fmt::Display| Absent::Failed(e.to_string());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| failed(&e))?;
    let client = runtime.block_on(anyqueue::connect(&url)).map_err(|e| failed(&e))?;
    let table = capability_table(&[(name, (*client.capabilities()).clone())]);
    columns(&table).remove(name).ok_or_else(|| failed(&"the table has no such column"))
}

/// The table in the document.
fn table(document: &str) -> &str {
    let inside = document.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    inside.map_or("", |(table, _)| table.trim())
}

fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

/// The columns of a table, by heading.
fn columns(table: &str) -> BTreeMap<String, Column> {
    let mut lines = table.lines().map(cells);
    let headings = lines.next().unwrap_or_default();
    let mut columns = BTreeMap::<String, Column>::new();
    for row in lines.skip(1) {
        for (heading, cell) in headings.iter().zip(&row).skip(1) {
            columns.entry(heading.clone()).or_default().insert(row[0].clone(), cell.clone());
        }
    }
    columns
}

/// The document with the columns that could be asked for; the others stay as they are.
fn updated(document: &str, present: &[(&str, Result<Column, Absent>)]) -> String {
    let recorded = columns(table(document));
    let order = capability_table(&[("any", Default::default())]);
    let mut out = String::from("|");
    present.iter().for_each(|(name, _)| out.push_str(&format!(" | {name}")));
    out.push_str(&format!(" |\n|---|{}", "---|".repeat(present.len())));
    for row in order.lines().skip(2).map(|line| cells(line).swap_remove(0)) {
        out.push_str(&format!("\n| {row}"));
        for (name, column) in present {
            let known = column.as_ref().ok().or_else(|| recorded.get(*name)).and_then(|c| c.get(&row));
            out.push_str(&format!(" | {}", known.map_or("?", String::as_str)));
        }
        out.push_str(" |");
    }
    let (before, rest) = document.split_once(BEGIN).expect("the document marks where the table is");
    let (_, after) = rest.split_once(END).expect("the document marks where the table ends");
    let document = format!("{before}{BEGIN}{out}\n{END}{after}");
    std::fs::write(PATH, &document).expect("the document can be written");
    document
}

fn differs(present: &Column, recorded: &Column) -> Failed {
    let different = present.iter().filter(|(row, cell)| recorded.get(*row) != Some(*cell));
    let different: Vec<_> =
        different.map(|(row, cell)| format!("{row} is {cell}, documented is {:?}", recorded.get(row))).collect();
    format!("{}; UPDATE_DOCS=1 rewrites the table", different.join("; ")).into()
}

/// Every case of the suite was run, or is listed as not run; every case that is listed exists.
fn cases_add_up(report: Option<String>, names: &[String]) -> Result<Completion, Failed> {
    let report = report.ok_or("docs/semantics.md has no such section")?;
    if report.contains(UNRECORDED) {
        return Ok(Completion::ignored_with("not recorded yet"));
    }
    let mut listed = report.lines().filter_map(|line| line.strip_prefix("* `")?.split('`').next());
    if let Some(unknown) = listed.find(|case| !names.iter().any(|name| name == case)) {
        return Err(format!("the suite has no case {unknown}").into());
    }
    let run: Option<usize> = report.lines().find_map(|line| line.strip_suffix(" cases run.")?.parse().ok());
    let run = run.ok_or("the section tells no number of cases")?;
    let left_out = report.split_once("Not run:").map_or(0, |(_, list)| list.matches("\n* `").count());
    if run + left_out == names.len() {
        return Ok(Completion::Completed);
    }
    Err(format!("{run} cases run and {left_out} not, of {}: the suite has changed; run it again", names.len()).into())
}
