//! What a run leaves: `result.csv`, `bad.csv` and `throughput.svg`.

use std::fs;
use std::path::Path;

use crate::Outcome;
use crate::plot::plot;
use crate::state::State;
use crate::totals::Total;

/// What was written.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) stations: usize,
    pub(crate) bad: usize,
}

/// Makes the folder, before there is anything to lose.
pub(crate) fn prepare(folder: &Path) -> Outcome {
    fs::create_dir_all(folder).map_err(|error| format!("OUT '{}': {error}", folder.display()).into())
}

/// Writes what comes of so many records.
pub(crate) async fn write(state: &State, folder: &Path, records: u64) -> Outcome<Written> {
    let (totals, bad) = (state.totals().await?, state.bad().await?);
    let good: i64 = totals.iter().map(|(_, total)| total.records).sum();
    if u64::try_from(good)? + bad.len() as u64 != records {
        return Err(format!("of {records} records {good} are good and {} bad: this is a defect", bad.len()).into());
    }
    let mut result = csv::Writer::from_writer(Vec::new());
    result.write_record(["station", "records", "sum", "min", "max"])?;
    for (station, Total { records, sum, lowest, highest }) in &totals {
        result.serialize((station, records, sum, lowest, highest))?;
    }
    let mut errors = csv::Writer::from_writer(Vec::new());
    errors.write_record(["page", "line", "reason"])?;
    for (page, record, why) in &bad {
        // The first line of a page is no record.
        errors.serialize((page, record + 2, why))?;
    }
    replace(folder, "result.csv", &result.into_inner()?)?;
    replace(folder, "bad.csv", &errors.into_inner()?)?;
    replace(folder, "throughput.svg", plot(&state.seconds().await?)?.as_bytes())?;
    Ok(Written { stations: totals.len(), bad: bad.len() })
}

/// Whoever reads the file has the old one or the new one, never half of it.
fn replace(folder: &Path, name: &str, text: &[u8]) -> Outcome {
    let (path, new) = (folder.join(name), folder.join(format!("{name}.new")));
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &path));
    written.map_err(|error| format!("'{}': {error}", path.display()).into())
}
