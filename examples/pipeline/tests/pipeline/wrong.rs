//! Bad input.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::{IntoResponse, Response};
use reqwest::StatusCode;
use tokio::sync::Semaphore;

use crate::front::Front;
use crate::place::{Place, pages, pipeline, run};
use crate::process::{Running, failed, refused};
use crate::{Outcome, block_on};

const USAGE: &str = "usage: pipeline pages [RECORDS [PER_PAGE]] [--to FOLDER] | run SOURCE | work\n";

pub(crate) fn arguments(_: &str) -> Outcome {
    for arguments in [&[][..], &["run"], &["run", "a", "b"], &["work", "a"], &["fetch"], &["pages", "1", "2", "3"]] {
        assert_eq!(refused(pipeline(arguments))?, USAGE, "{arguments:?}");
    }
    for (arguments, why) in [
        (&["pages", "many"][..], "RECORDS is a number from 1 to 1000000000, not 'many'; "),
        (&["pages", "0"], "RECORDS is a number from 1 to 1000000000, not '0'; "),
        (&["pages", "--to"], "RECORDS is a number from 1 to 1000000000, not '--to'; "),
        (&["pages", "1", "-1"], "PER_PAGE is a number from 1 to 65536, not '-1'; "),
        (&["pages", "1", "65537"], "PER_PAGE is a number from 1 to 65536, not '65537'; "),
        (&["pages", "1000000000", "1"], "1000000000 records are more than 1000000 pages of 1; "),
    ] {
        assert_eq!(refused(pipeline(arguments))?, format!("{why}{USAGE}"));
    }
    for source in ["", "nowhere", "Cargo.toml", "ftp://localhost"] {
        let why = "SOURCE is the URL of an index of pages, http://…, or a folder of CSV files, not";
        assert_eq!(refused(pipeline(&["run", source]))?, format!("{why} '{source}'\n"));
    }
    assert!(refused(pipeline(&["run", "http://"]))?.starts_with("SOURCE 'http://': "));
    let mut command = pipeline(&["run"]);
    command.arg(OsStr::from_bytes(b"\xff"));
    assert!(refused(command)?.ends_with(" is no text\n"));

    let place = Place::on_memory("arguments")?;
    let queue = "QUEUE takes 1 to 40 letters, digits and single hyphens between them, not";
    let workers = "WORKERS takes a number from 1 to 60, not";
    for (name, value, why) in [
        ("QUEUE", "", format!("{queue} ''\n")),
        ("QUEUE", "topic:a", format!("{queue} 'topic:a'\n")),
        ("QUEUE", "a--b", format!("{queue} 'a--b'\n")),
        ("QUEUE", "a-", format!("{queue} 'a-'\n")),
        ("WORKERS", "0", format!("{workers} '0'\n")),
        ("WORKERS", "all", format!("{workers} 'all'\n")),
        ("WORKERS", "61", format!("{workers} '61'\n")),
        ("STATE", "", "STATE takes a path, not ''\n".to_owned()),
        ("OUT", "", "OUT takes a path, not ''\n".to_owned()),
        ("QUEUE_URL", "", "QUEUE_URL".to_owned()),
        ("QUEUE_URL", "memory://?prefetsch=1", "QUEUE_URL".to_owned()),
        ("QUEUE_URL", "http://localhost", "QUEUE_URL".to_owned()),
    ] {
        for command in [&["run", "src"][..], &["work"]] {
            let mut command = place.pipeline(command);
            command.env(name, value);
            let said = refused(command)?;
            assert!(said.starts_with(&why) && said.lines().count() == 1, "{said}");
        }
        let mut command = place.pipeline(&["work"]);
        command.env(name, OsStr::from_bytes(b"\xff"));
        assert_eq!(refused(command)?, format!("{name} is no text\n"));
    }
    for url in ["memory://", "Memory://"] {
        let mut command = place.pipeline(&["work"]);
        command.env("QUEUE_URL", url);
        let said = refused(command)?;
        assert!(said.starts_with(&format!("QUEUE_URL is '{url}', which other processes do not reach: ")), "{said}");
    }
    let mut command = place.pipeline(&["run", "src"]);
    command.env("QUEUE_URL", "amqp://127.0.0.1:1?connect_timeout=1s");
    assert_eq!(failed(command)?.1.lines().count(), 1);
    place.clean()
}

pub(crate) fn places(_: &str) -> Outcome {
    let place = Place::on_memory("places")?;
    let (server, at) = pages(10, 10)?;
    let file = place.folder.join("file");
    fs::write(&file, "this is no database, and no folder either")?;
    let path = file.display();
    for (name, value, why) in [
        ("STATE", format!("{path}"), format!("STATE '{path}': ")),
        ("STATE", format!("{path}/state.db"), format!("STATE '{path}/state.db.lock': ")),
        ("OUT", format!("{path}"), format!("OUT '{path}': ")),
        ("OUT", format!("{path}/out"), format!("OUT '{path}/out': ")),
    ] {
        let mut command = place.pipeline(&["run", &at]);
        command.env(name, value);
        let (_, said) = failed(command)?;
        assert!(said.starts_with(&why) && said.lines().count() == 1, "{said}");
    }
    let index = format!("{at}/pages/1.csv");
    let (_, said) = failed(place.pipeline(&["run", &index]))?;
    assert!(said.contains("page"), "{said}");
    let (_, said) = failed(place.pipeline(&["run", &format!("{at}/nowhere")]))?;
    assert_eq!(said, format!("{at}/nowhere: HTTP status client error (404 Not Found)\n"));
    // None of these is what the state file belongs to now.
    run(place.pipeline(&["run", &at]))?;
    alone(&place)?;
    server.interrupt()?;
    place.clean()
}

/// One run at a time.
fn alone(place: &Place) -> Outcome {
    let folder = place.folder.join("alone");
    fs::create_dir_all(&folder)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let gate = Arc::new(Semaphore::new(0));
    let held = gate.clone();
    let front = Front::start(move |path| {
        let held = held.clone();
        async move {
            if path == "/" {
                return "/1.csv\n".into_response();
            }
            drop(held.acquire().await);
            Response::new("station,millidegrees\na,1\n".into())
        }
    });
    let front = runtime.block_on(front)?;
    let command = || {
        let mut command = place.pipeline(&["run", &front.at]);
        command.env("STATE", folder.join("state.db"));
        command
    };
    let first = Running::start(command())?;
    let begun = Instant::now();
    while !folder.join("state.db").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(10));
    }
    let (_, said) = failed(command())?;
    assert_eq!(said, format!("STATE '{}' has another run at work\n", folder.join("state.db").display()));
    gate.add_permits(Semaphore::MAX_PERMITS);
    assert!(first.line()?.starts_with("1 pages, 1 records of 1 stations, 0 bad; 1 of them in "));
    Ok(())
}

pub(crate) fn requests(_: &str) -> Outcome {
    let (server, at) = pages(25, 10)?;
    block_on(async {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let index = client.get(&at).send().await?;
        assert_eq!(index.text().await?, "/pages/1.csv\n/pages/2.csv\n/pages/3.csv\n");
        let page = client.get(format!("{at}/pages/3.csv")).send().await?;
        assert_eq!(page.headers()["content-type"], "text/csv; charset=utf-8");
        assert_eq!(page.text().await?.lines().count(), 6);
        for page in [
            "0.csv",
            "4.csv",
            "01.csv",
            "+1.csv",
            "-1.csv",
            "1",
            "1.CSV",
            "a.csv",
            "%ff.csv",
            "99999999999999999999.csv",
        ] {
            let answer = client.get(format!("{at}/pages/{page}")).send().await?;
            assert!([StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST].contains(&answer.status()), "{page}");
            assert_ne!(answer.text().await?, "", "{page}");
        }
        for other in ["/pages", "/pages/", "/pages/1.csv/", "/other"] {
            assert_eq!(client.get(format!("{at}{other}")).send().await?.status(), StatusCode::NOT_FOUND, "{other}");
        }
        for path in ["/", "/pages/1.csv"] {
            let answer = client.post(format!("{at}{path}")).body("x").send().await?;
            assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
            let answer = client.head(format!("{at}{path}")).send().await?;
            assert_eq!(answer.status(), StatusCode::OK, "{path}");
        }
        Ok(())
    })?;
    for listen in ["", "nowhere", "127.0.0.1:99999", at.trim_start_matches("http://")] {
        let mut command = pipeline(&["pages"]);
        command.env("LISTEN", listen);
        let (_, said) = failed(command)?;
        assert!(said.starts_with(&format!("LISTEN '{listen}': ")) && said.lines().count() == 1, "{said}");
    }
    let (_, said) = failed(pipeline(&["pages", "1", "1", "--to", "/dev/null/pages"]))?;
    assert!(said.starts_with("/dev/null/pages: "), "{said}");
    server.interrupt()?;
    Ok(())
}
