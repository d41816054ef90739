//! A record: a line of a page, and a message.

use anyqueue::Message;
use axum::body::Bytes;
use csv::{ReaderBuilder, StringRecord};

/// The first line of a page.
pub(crate) const HEADER: &str = "station,millidegrees";
/// Bytes of a station's name.
const LONGEST_NAME: usize = 200;

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Measurement {
    pub(crate) station: String,
    pub(crate) millidegrees: i32,
}

/// Where a record stands: its page, and its place among the page's records, from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) page: i64,
    pub(crate) record: u32,
}

impl Place {
    /// As a message, of the job that a state file stands for: other jobs may have left theirs in the queue.
    pub(crate) fn message(self, job: &str, line: Bytes) -> Message {
        Message::new(line).id(format!("{job}.{}.{}", self.page, self.record))
    }

    pub(crate) fn of(message: &Message, job: &str) -> Result<Self, String> {
        let id = message.get_id().unwrap_or_default();
        let place = || {
            let (page, record) = id.strip_prefix(job)?.strip_prefix('.')?.split_once('.')?;
            Some(Self { page: page.parse().ok()?, record: record.parse().ok()? })
        };
        place().ok_or_else(|| format!("the message '{id}' is no record of this job, {job}"))
    }
}

/// Reads a line.
pub(crate) fn parse(line: &[u8]) -> Result<Measurement, String> {
    let text = str::from_utf8(line).map_err(|_| "it is no text in UTF-8")?;
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    // To make a reader takes far longer than to read a line, and only quotes need one.
    if !text.contains('"') {
        return measurement(text.split(','));
    }
    let mut reader = ReaderBuilder::new().has_headers(false).from_reader(line);
    let mut fields = StringRecord::new();
    reader.read_record(&mut fields).map_err(|error| error.to_string())?;
    measurement(fields.iter())
}

fn measurement<'a>(fields: impl Iterator<Item = &'a str>) -> Result<Measurement, String> {
    let fields: Vec<_> = fields.collect();
    let [station, millidegrees] = fields[..] else {
        return Err(format!("it has {} fields where {HEADER} are 2", fields.len()));
    };
    if !(1..=LONGEST_NAME).contains(&station.len()) {
        return Err(format!("its station has {} bytes, not 1 to {LONGEST_NAME}", station.len()));
    }
    let number = millidegrees.parse();
    let millidegrees = number.map_err(|why| format!("its millidegrees are '{millidegrees}': {why}"))?;
    Ok(Measurement { station: station.to_owned(), millidegrees })
}
