//! Aggregates batches of records: each record once, however often it comes.

use std::collections::{BTreeMap, HashMap};

use sqlx::{Connection, QueryBuilder, Sqlite};

use crate::record::{Measurement, Place};
use crate::state::State;

/// Which records of a page were seen, a bit each.
#[derive(Debug)]
pub(crate) struct Seen(pub(crate) Vec<u8>);

impl Seen {
    pub(crate) fn has(&self, record: u32) -> bool {
        self.0.get(record as usize / 8).is_some_and(|bits| bits & (1 << (record % 8)) != 0)
    }

    /// Whether it is new.
    fn add(&mut self, record: u32) -> bool {
        let is_new = !self.has(record);
        if let Some(bits) = self.0.get_mut(record as usize / 8) {
            *bits |= 1 << (record % 8);
        }
        is_new
    }
}

/// A record that was read.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) read: Result<Measurement, String>,
}

/// What is known of a station.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Total {
    pub(crate) records: i64,
    pub(crate) sum: i64,
    pub(crate) lowest: i64,
    pub(crate) highest: i64,
}

impl Total {
    fn add(total: Option<Self>, value: i64) -> Self {
        match total {
            None => Self { records: 1, sum: value, lowest: value, highest: value },
            Some(Self { records, sum, lowest, highest }) => {
                Self { records: records + 1, sum: sum + value, lowest: lowest.min(value), highest: highest.max(value) }
            }
        }
    }
}

impl State {
    /// Adds what was not seen before, in one transaction.
    pub(crate) async fn add(&self, entries: &[&Entry]) -> sqlx::Result<()> {
        let mut pages = BTreeMap::<i64, Vec<&Entry>>::new();
        for entry in entries {
            pages.entry(entry.place.page).or_default().push(entry);
        }
        let mut totals = HashMap::<&str, Total>::new();
        let mut new = 0;

        let mut writer = self.writer().await?;
        let mut batch = writer.begin_with("BEGIN IMMEDIATE").await?;
        for (page, entries) in pages {
            let known = "SELECT records, seen FROM pages WHERE page = ? AND records IS NOT NULL";
            let known = sqlx::query_as(known).bind(page).fetch_optional(&mut *batch).await?;
            let Some((records, seen)): Option<(u32, Vec<u8>)> = known else { continue };
            let (mut seen, before) = (Seen(seen), new);
            for Entry { place, read } in entries {
                if place.record >= records || !seen.add(place.record) {
                    continue;
                }
                new += 1;
                match read {
                    Ok(Measurement { station, millidegrees }) => {
                        let value = i64::from(*millidegrees);
                        let total = Total::add(totals.get(&**station).copied(), value);
                        totals.insert(station, total);
                    }
                    Err(why) => {
                        let bad = sqlx::query("INSERT INTO bad VALUES (?, ?, ?)");
                        bad.bind(page).bind(place.record).bind(why).execute(&mut *batch).await?;
                    }
                }
            }
            if new > before {
                let note = "UPDATE pages SET seen = ?, missing = missing - ? WHERE page = ?";
                let note = sqlx::query(note).bind(seen.0).bind(new - before).bind(page);
                note.execute(&mut *batch).await?;
            }
        }
        if !totals.is_empty() {
            let mut sum = QueryBuilder::<Sqlite>::new("INSERT INTO totals (station, records, sum, lowest, highest) ");
            sum.push_values(totals, |mut row, (station, total)| {
                row.push_bind(station).push_bind(total.records).push_bind(total.sum);
                row.push_bind(total.lowest).push_bind(total.highest);
            });
            sum.push(
                " ON CONFLICT (station) DO UPDATE SET records = records + excluded.records, sum = sum + excluded.sum,
                  lowest = min(lowest, excluded.lowest), highest = max(highest, excluded.highest)",
            );
            // It is another one for each number of stations.
            sum.build().persistent(false).execute(&mut *batch).await?;
        }
        // Copies are no work of this second.
        if new > 0 {
            let second =
                "INSERT INTO seconds VALUES (unixepoch(), ?1) ON CONFLICT DO UPDATE SET records = records + ?1";
            sqlx::query(second).bind(new).execute(&mut *batch).await?;
        }
        batch.commit().await
    }

    /// Each station, by name.
    pub(crate) async fn totals(&self) -> sqlx::Result<Vec<(String, Total)>> {
        let totals = "SELECT station, records, sum, lowest, highest FROM totals ORDER BY station";
        let totals = sqlx::query_as(totals).fetch_all(&mut *self.reader().await).await?;
        let total = |(station, records, sum, lowest, highest)| (station, Total { records, sum, lowest, highest });
        Ok(totals.into_iter().map(total).collect())
    }

    /// The page, the place and the reason of each record that is bad.
    pub(crate) async fn bad(&self) -> sqlx::Result<Vec<(String, i64, String)>> {
        let bad = "SELECT name, record, why FROM bad JOIN pages USING (page) ORDER BY page, record";
        sqlx::query_as(bad).fetch_all(&mut *self.reader().await).await
    }

    /// Records of each second of a run, those between runs left out.
    pub(crate) async fn seconds(&self) -> sqlx::Result<Vec<i64>> {
        sqlx::query_scalar("SELECT records FROM seconds ORDER BY second").fetch_all(&mut *self.reader().await).await
    }
}
