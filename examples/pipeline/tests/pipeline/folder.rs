//! A folder as the source, and sources that change.

use std::fs;
use std::path::Path;

use crate::Outcome;
use crate::expected::result;
use crate::place::{Place, pipeline, run};
use crate::process::{failed, refused};
use crate::whole::{plotted, summed};

/// The files of a folder.
fn files(folder: &Path) -> Outcome<Vec<String>> {
    fs::read_dir(folder)?.map(|file| Ok(fs::read_to_string(file?.path())?)).collect()
}

pub(crate) fn exact(_: &str) -> Outcome {
    let place = Place::on_memory("folder")?;
    let folder = place.folder.join("pages");
    let name = folder.to_str().ok_or("no text")?;
    assert_eq!(run(pipeline(&["pages", "4950", "100", "--to", name]))?, "");
    let pages = files(&folder)?;
    assert_eq!(pages.len(), 50);
    fs::write(folder.join("notes.txt"), "no page")?;

    let said = run(place.pipeline(&["run", name]))?;
    summed(&said, "50 pages, 4950 records of 100 stations, 0 bad; 4950 of them in ");
    assert_eq!(place.out("result.csv")?, result(pages.iter().map(String::as_str))?);
    plotted(&place)?;

    // What comes later is added.
    fs::write(folder.join("later.csv"), "station,millidegrees\nlater,-1\n")?;
    let said = run(place.pipeline(&["run", name]))?;
    summed(&said, "51 pages, 4951 records of 101 stations, 0 bad; 1 of them in ");
    assert!(place.out("result.csv")?.starts_with("station,records,sum,min,max\nlater,1,-1,-1,-1\nstation-00,"));
    place.clean()
}

pub(crate) fn changes(_: &str) -> Outcome {
    let place = Place::on_memory("changes")?;
    let (one, other) = (place.folder.join("one"), place.folder.join("other"));
    let name = one.canonicalize().unwrap_or(one.clone());
    let name = name.to_str().ok_or("no text")?;
    run(pipeline(&["pages", "30", "10", "--to", name]))?;
    run(pipeline(&["pages", "30", "10", "--to", other.to_str().ok_or("no text")?]))?;
    run(place.pipeline(&["run", name]))?;

    let state = place.folder.join("state.db");
    let (state, other) = (state.display(), other.display());
    let said = refused(place.pipeline(&["run", &other.to_string()]))?;
    assert_eq!(said, format!("STATE '{state}' is that of '{name}', not of '{other}': take another one\n"));

    // As a kill leaves it: the last page is not complete.
    place.ask("UPDATE pages SET missing = 1 WHERE name = '3.csv' RETURNING 1")?;
    let taken = "the source has changed: take another STATE\n1 of 3 pages are missing, so there is no result: ";
    let page = fs::read_to_string(one.join("3.csv"))?;
    for (now, how) in [(page.replace(",-", ","), "others"), (format!("{page}x,1\n"), "11")] {
        fs::write(one.join("3.csv"), now)?;
        let (_, why) = failed(place.pipeline(&["run", name]))?;
        let expected = format!("3.csv: it had 10 records and has {how} now, {taken}");
        assert!(why.contains(&expected), "{why}");
    }
    fs::remove_file(one.join("3.csv"))?;
    let (_, why) = failed(place.pipeline(&["run", name]))?;
    assert_eq!(why, format!("'{name}' has changed, it has no page '3.csv' any more: take another STATE\n"));
    place.clean()
}
