//! What a run of the suite came to, for people and for documentation.

use std::fmt;

use crate::capability::Capabilities;

/// What a run of the suite came to on one harness.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Report {
    /// The harness.
    pub name: String,
    /// Cases that proved their promise.
    pub passed: Vec<String>,
    /// Cases whose capability is not declared, with that capability: the operation was answered by `Unsupported` (or
    /// what else the case says), and nothing arrived.
    pub unsupported: Vec<(String, &'static str)>,
    /// Cases that the harness cannot run, and why.
    pub left_out: Vec<(String, String)>,
    /// Cases that failed, and how.
    pub failed: Vec<(String, String)>,
}

impl Report {
    /// Whether nothing failed and something ran.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.failed.is_empty() && !self.passed.is_empty()
    }

    pub(super) fn sort(&mut self) {
        self.passed.sort();
        self.unsupported.sort();
        self.left_out.sort();
        self.failed.sort();
    }

    /// The report in Markdown, without anything that differs between two runs.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut out = format!("### {}\n\n{} cases run.", self.name, self.passed.len() + self.unsupported.len());
        if !self.unsupported.is_empty() {
            out.push_str("\n\nAnswered by `Unsupported`:\n");
            for (case, capability) in &self.unsupported {
                out.push_str(&format!("\n* `{case}` ({capability})"));
            }
        }
        if !self.left_out.is_empty() {
            out.push_str("\n\nNot run:\n");
            for (case, why) in &self.left_out {
                out.push_str(&format!("\n* `{case}`: {why}"));
            }
        }
        out.push('\n');
        out
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = self.passed.len() + self.unsupported.len() + self.failed.len();
        writeln!(f, "{}: {run} cases run, {} failed", self.name, self.failed.len())?;
        if !self.unsupported.is_empty() {
            writeln!(f, "  answered by Unsupported: {}", self.unsupported.len())?;
            for (case, capability) in &self.unsupported {
                writeln!(f, "    {case} ({capability})")?;
            }
        }
        if !self.left_out.is_empty() {
            writeln!(f, "  not run: {}", self.left_out.len())?;
            for (case, why) in &self.left_out {
                writeln!(f, "    {case}: {why}")?;
            }
        }
        Ok(())
    }
}

fn yes(value: bool) -> String {
    if value { "yes" } else { "–" }.to_owned()
}

fn bytes(value: usize) -> String {
    match value {
        usize::MAX => "any".to_owned(),
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!("{} MiB", n >> 20),
        n if n >= 1 << 10 && n % (1 << 10) == 0 => format!("{} KiB", n >> 10),
        n => n.to_string(),
    }
}

fn count(value: usize) -> String {
    if value == usize::MAX { "any".to_owned() } else { value.to_string() }
}

fn time(value: std::time::Duration) -> String {
    /// Longer than anybody waits.
    const ENDLESS: u64 = 5 * 365 * 24 * 3600;
    match value.as_secs() {
        0 if value.is_zero() => "–".to_owned(),
        n if n >= ENDLESS => "any".to_owned(),
        _ => humantime::format_duration(value).to_string(),
    }
}

/// A row of the table: a name, and how it is read from the capabilities.
type Row = (&'static str, fn(&Capabilities) -> String);

const ROWS: &[Row] = &[
    ("max_message_bytes", |c| bytes(c.max_message_bytes)),
    ("max_batch", |c| count(c.max_batch)),
    ("max_batch_bytes", |c| bytes(c.max_batch_bytes)),
    ("max_headers", |c| count(c.max_headers)),
    ("ordering", |c| format!("{:?}", c.ordering)),
    ("topics", |c| yes(c.topics)),
    ("group_backlog", |c| yes(c.group_backlog)),
    ("anonymous_subscribers", |c| yes(c.anonymous_subscribers)),
    ("delayed_send", |c| yes(c.delayed_send)),
    ("max_delay", |c| time(c.max_delay)),
    ("delayed_retry", |c| yes(c.delayed_retry)),
    ("retry_via", |c| format!("{:?}", c.retry_via)),
    ("max_retry_delay", |c| time(c.max_retry_delay)),
    ("own_backoff", |c| yes(c.own_backoff)),
    ("ttl", |c| yes(c.ttl)),
    ("max_ttl", |c| time(c.max_ttl)),
    ("priority", |c| yes(c.priority)),
    ("dead_letter", |c| yes(c.dead_letter)),
    ("tombstones", |c| yes(c.tombstones)),
    ("typed_headers", |c| yes(c.typed_headers)),
    ("replay", |c| yes(c.replay)),
    ("transactions", |c| yes(c.transactions)),
    ("requests", |c| yes(c.requests)),
    ("delivery_count", |c| format!("{:?}", c.delivery_count)),
    ("max_lease", |c| c.max_lease.map_or_else(|| "while connected".to_owned(), time)),
    ("durable", |c| yes(c.durable)),
    ("purge", |c| yes(c.purge)),
    ("stats", |c| yes(c.stats)),
    ("per_request", |c| yes(c.per_request)),
];

/// The capabilities of some brokers as a table in Markdown: a row for each capability, a column for each broker.
///
/// ```
/// use queue_core::{Capabilities, conformance::capability_table};
///
/// let table = capability_table(&[("mine", Capabilities::default())]);
/// assert!(table.starts_with("| | mine |\n|---|---|\n| `max_message_bytes` | any |\n"));
/// ```
#[must_use]
pub fn capability_table(brokers: &[(&str, Capabilities)]) -> String {
    let mut out = String::from("| |");
    brokers.iter().for_each(|(name, _)| out.push_str(&format!(" {name} |")));
    out.push_str("\n|---|");
    out.push_str(&"---|".repeat(brokers.len()));
    for (name, read) in ROWS {
        out.push_str(&format!("\n| `{name}` |"));
        brokers.iter().for_each(|(_, capabilities)| out.push_str(&format!(" {} |", read(capabilities))));
    }
    out.push('\n');
    out
}
