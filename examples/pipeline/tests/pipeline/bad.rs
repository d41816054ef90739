//! Records that say nothing, and pages that do not come.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyqueue::{Message, dead_letter};
use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::sync::watch;

use crate::Outcome;
use crate::front::Front;
use crate::place::{Place, run};
use crate::process::failed;
use crate::whole::{plotted, summed};

/// Records that are bad, the lines where they stand, and why.
const BAD: [(&[u8], usize, &str); 8] = [
    (b"b", 3, "it has 1 fields where station,millidegrees are 2"),
    (b"", 4, "it is empty"),
    (b"c,1,2", 5, "it has 3 fields where station,millidegrees are 2"),
    (b"d,1.5", 6, "its millidegrees are '1.5': invalid digit found in string"),
    (b"d,2147483648", 7, "its millidegrees are '2147483648': number too large to fit in target type"),
    (b",5", 8, "its station has 0 bytes, not 1 to 200"),
    (b"\xff,5", 9, "it is no text in UTF-8"),
    (b"\"d,6", 10, "it has 1 fields where station,millidegrees are 2"),
];

pub(crate) fn records(url: &str) -> Outcome {
    let place = Place::new("bad", url)?;
    let mut page = b"station,millidegrees\na,1\n".to_vec();
    for (record, ..) in BAD {
        page.extend_from_slice(record);
        page.push(b'\n');
    }
    page.extend_from_slice("\"Zürich, HB\",-5\r\na,2147483647\na,-2147483648\n".as_bytes());
    let good = b"station,millidegrees\r\na,3\r\n".to_vec();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let empty = b"station,millidegrees\n".to_vec();
    // A job ends with its own records: the last page is there when what is not of it was met.
    let (met, meeting) = watch::channel(!place.is_shared());
    let pages = vec![("/bad.csv", page), ("/good.csv", good), ("/empty.csv", empty)];
    let front = runtime.block_on(Front::of_when(pages, "/good.csv", meeting))?;
    let mut expected = "page,line,reason\n".to_owned();
    for (_, line, why) in BAD {
        let why = if why.contains(',') { format!("\"{why}\"") } else { why.to_owned() };
        expected += &format!("{}/bad.csv,{line},{why}\n", front.at);
    }
    let mut graves = None;
    if place.is_shared() {
        // The queue has the name of the job, which the first run makes, even one that fails.
        let none = place.folder.join("none");
        fs::create_dir_all(&none)?;
        fs::write(none.join("none.csv"), "none\n")?;
        failed(place.pipeline(&["run", none.to_str().ok_or("no text")?]))?;
        let queue = place.queue()?;
        runtime.block_on(foreign(&place, &queue))?;
        graves = Some(runtime.spawn(letters(place.url.clone(), queue, met)));
    }
    for new in [13, 0] {
        let said = run(place.pipeline(&["run", &front.at]))?;
        summed(&said, &format!("3 pages, 13 records of 2 stations, 8 bad; {new} of them in "));
        let result = "station,records,sum,min,max\n\"Zürich, HB\",1,-5,-5,-5\na,4,3,-2147483648,2147483647\n";
        assert_eq!(place.out("result.csv")?, result);
        assert_eq!(place.out("bad.csv")?, expected);
    }
    plotted(&place)?;
    if let Some(graves) = graves {
        let mut letters = runtime.block_on(graves)??;
        for (body, id) in FOREIGN {
            let why = letters.remove(body.as_bytes()).ok_or("it is gone")?;
            assert!(why.starts_with(&format!("the message '{id}' is no record of this job, ")), "{why}");
        }
        assert_eq!(letters, BAD.map(|(record, _, why)| (record.to_vec(), why.to_owned())).into());
    }
    place.clean()
}

/// Messages that are of another job, and their ids.
const FOREIGN: [(&str, &str); 2] = [("a,1000", "000000000000.1.0"), ("a,2000", "7")];

async fn foreign(place: &Place, queue: &str) -> Outcome {
    let client = anyqueue::connect(&place.url).await?;
    let messages = FOREIGN.map(|(body, id)| Message::new(body).id(id));
    client.sender(queue).await?.send_batch(messages).await?;
    client.close(Duration::from_secs(5)).await;
    Ok(())
}

/// The dead letters, with their reasons; tells when those of another job are there.
async fn letters(url: String, queue: String, met: watch::Sender<bool>) -> Outcome<BTreeMap<Vec<u8>, String>> {
    let client = anyqueue::connect(&url).await?;
    let mut receiver = client.receiver(format!("{queue}-dlq")).discard_dead_letters().await?;
    let mut letters = BTreeMap::new();
    while letters.len() < BAD.len() + FOREIGN.len() {
        let letter = tokio::time::timeout(Duration::from_secs(240), receiver.receive()).await??;
        let reason = letter.headers().get(dead_letter::REASON).and_then(|reason| reason.as_str());
        letters.insert(letter.payload().to_vec(), reason.ok_or("no reason")?.to_owned());
        letter.ack();
        met.send_replace(FOREIGN.iter().all(|(body, _)| letters.contains_key(body.as_bytes())));
    }
    client.close(Duration::from_secs(5)).await;
    Ok(letters)
}

const GOOD: &str = "station,millidegrees\na,1\nb,2\n";

pub(crate) fn pages(_: &str) -> Outcome {
    let place = Place::on_memory("pages")?;
    let is_well = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (healed, counted) = (is_well.clone(), asked.clone());
    let front = Front::start(move |path| {
        let (is_well, asked) = (healed.load(Ordering::Relaxed), counted.clone());
        async move { answer(&path, is_well, &asked) }
    });
    let front = runtime.block_on(front)?;
    let (said, why) = failed(place.pipeline(&["run", &front.at]))?;
    println!("{why}");
    assert_eq!(said, "");
    let told = |page: &str, why_not: &str| why.contains(&format!("{}/{page}.csv: {why_not}", front.at));
    assert!(told("broken", "HTTP status server error (500 Internal Server Error) (5 times)"));
    assert!(told("gone", "HTTP status client error (404 Not Found)\n"));
    assert!(told("cut", "error "));
    assert!(told("half", "its last line has no end: it was cut (5 times)"));
    assert!(told("other", "its first line is not station,millidegrees\n"));
    assert!(told("large", "it has more than 16777216 bytes\n"));
    assert!(told("long", "it has more than 65536 records\n"));
    assert!(told("wide", "line 3 has more than 65536 bytes\n"));
    assert!(why.ends_with("8 of 10 pages are missing, so there is no result: run again to fetch them\n"));
    // One came at the third time, and only once more after that.
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    assert!(!place.folder.join("out/result.csv").exists());
    assert_eq!(place.ask("SELECT sum(records) FROM totals")?, 4);

    is_well.store(true, Ordering::Relaxed);
    let said = run(place.pipeline(&["run", &front.at]))?;
    summed(&said, "10 pages, 20 records of 2 stations, 0 bad; 16 of them in ");
    assert_eq!(place.out("result.csv")?, "station,records,sum,min,max\na,10,10,1,1\nb,10,20,2,2\n");
    assert_eq!(asked.load(Ordering::Relaxed), 3);
    place.clean()
}

fn answer(path: &str, is_well: bool, asked: &AtomicUsize) -> Response {
    match path {
        "/" => ["good", "flaky", "broken", "gone", "cut", "half", "other", "large", "long", "wide"]
            .map(|page| format!("{page}.csv\n"))
            .concat()
            .into_response(),
        "/flaky.csv" if asked.fetch_add(1, Ordering::Relaxed) < 2 => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        _ if is_well => GOOD.into_response(),
        "/broken.csv" => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        "/gone.csv" => StatusCode::NOT_FOUND.into_response(),
        "/cut.csv" => {
            let cut = Err(std::io::Error::other("cut"));
            let parts = vec![Ok(Bytes::from_static(b"station,millidegrees\na,1\n")), cut];
            Body::from_stream(futures::stream::iter(parts)).into_response()
        }
        "/half.csv" => "station,millidegrees\na,1\nb,".into_response(),
        "/other.csv" => "<html>\n".into_response(),
        "/large.csv" => GOOD.repeat(1 << 20).into_response(),
        "/long.csv" => format!("station,millidegrees\n{}", "a,1\n".repeat(65_537)).into_response(),
        "/wide.csv" => format!("station,millidegrees\na,1\n{},2\n", "b".repeat(64 << 10)).into_response(),
        _ => GOOD.into_response(),
    }
}
