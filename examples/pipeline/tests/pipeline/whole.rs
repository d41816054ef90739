//! Nothing goes wrong.

use crate::expected::{fetched, points, result};
use crate::place::{Place, pages, run, size};
use crate::{Outcome, block_on};

pub(crate) fn exact(url: &str) -> Outcome {
    let place = Place::new("whole", url)?;
    let (records, per_page) = size(url);
    let (server, at) = pages(records, per_page)?;
    let said = run(place.pipeline(&["run", &at]))?;
    let pages = block_on(fetched(&at))?;
    assert_eq!(pages.len() as u64, records.div_ceil(per_page));
    assert_eq!(place.out("result.csv")?, result(pages.iter().map(String::as_str))?);
    assert_eq!(place.out("bad.csv")?, "page,line,reason\n");
    summed(&said, &format!("{} pages, {records} records of 100 stations, 0 bad; {records} of them", pages.len()));
    plotted(&place)?;

    // Once more there is nothing to do, and it comes to the same.
    let said = run(place.pipeline(&["run", &at]))?;
    summed(&said, &format!("{} pages, {records} records of 100 stations, 0 bad; 0 of them", pages.len()));
    assert_eq!(place.out("result.csv")?, result(pages.iter().map(String::as_str))?);
    server.interrupt()?;
    place.clean()
}

/// One line, that begins so and has time and rate.
pub(crate) fn summed(said: &str, begin: &str) {
    println!("{said}");
    assert!(said.starts_with(begin) && said.lines().count() == 1, "{said}");
    assert!(said.contains(" s, ") && said.ends_with(" records/s\n"), "{said}");
}

/// As many points as there are seconds.
pub(crate) fn plotted(place: &Place) -> Outcome {
    let points = points(&place.out("throughput.svg")?)?;
    assert!(points >= 1);
    assert_eq!(i64::try_from(points)?, place.ask("SELECT count(*) FROM seconds")?);
    Ok(())
}
