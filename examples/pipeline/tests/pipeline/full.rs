//! A transaction that SQLite itself rolls back, as it does where the disk is full.

use std::fs;

use crate::killed::together;
use crate::place::{Place, run};
use crate::process::{Running, failed};
use crate::{Outcome, block_on};

pub(crate) fn rolled_back(_: &str) -> Outcome {
    let place = Place::on_memory("full")?;
    let folder = place.folder.join("pages");
    let name = folder.to_str().ok_or("no text")?;
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("1.csv"), "none\n")?;
    failed(place.pipeline(&["run", name]))?;
    tell(&place, "CREATE TRIGGER full BEFORE INSERT ON totals BEGIN SELECT RAISE(ROLLBACK, 'it is full'); END")?;
    fs::write(folder.join("1.csv"), "station,millidegrees\na,1\nb,2\n")?;
    let running = Running::start(together(&place.pipeline(&["run", name])))?;
    while !running.line()?.starts_with("2 records wait, they cannot be added: ") {}
    tell(&place, "DROP TRIGGER full")?;
    loop {
        let line = running.line()?;
        println!("{line}");
        if line.starts_with("1 pages, 2 records of 2 stations, 0 bad; 2 of them in ") {
            break;
        }
    }
    drop(running);
    run(place.pipeline(&["run", name]))?;
    assert_eq!(place.out("result.csv")?, "station,records,sum,min,max\na,1,1,1,1\nb,1,2,2,2\n");
    place.clean()
}

fn tell(place: &Place, sql: &'static str) -> Outcome {
    block_on(async { Ok(sqlx::raw_sql(sql).execute(&mut place.state().await?).await.map(drop)?) })
}
