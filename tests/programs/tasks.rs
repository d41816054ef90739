//! Tasks in other processes.

use std::collections::HashSet;
use std::time::Duration;

use axum::http::StatusCode;
use futures::future::join_all;
use serde_json::Value;

use crate::http::{get, head};
use crate::process::{Running, example, failed, refused};
use crate::{Outcome, block_on};

/// Tasks, by size of the test.
fn tasks() -> usize {
    if std::env::var("FULL").is_ok_and(|full| full == "1") { 1000 } else { 60 }
}

fn worker(url: &str) -> Outcome<Running> {
    let worker = Running::start(example("tasks", url, &["work"])?)?;
    assert!(worker.line()?.ends_with("is ready"));
    Ok(worker)
}

/// The service, and where it listens.
fn service(url: &str, timeout: &str) -> Outcome<(Running, String)> {
    let mut command = example("tasks", url, &["serve"])?;
    command.env("LISTEN", "127.0.0.1:0").env("TIMEOUT", timeout);
    let service = Running::start(command)?;
    let at = service.line()?;
    Ok((service, at))
}

pub(crate) fn answered(urls: &[String]) -> Outcome {
    let url = &*urls[0];
    clean(url)?;
    let (service, at) = service(url, "60")?;
    let (one, other) = (worker(url)?, worker(url)?);
    block_on(async {
        // Both work: a group of Kafka forms late.
        let mut workers = HashSet::new();
        for n in 0.. {
            let answers = join_all((0..16).map(|i| get(format!("{at}/task?task_id=first-{n}-{i}")))).await;
            for answer in answers {
                workers.insert(done(answer?, None)?);
            }
            if workers.len() == 2 {
                break;
            }
        }
        // One is killed in the middle of its work: as many are under way as both do at a time, and more.
        let asked = (0..tasks()).map(|n| get(format!("{at}/task?task_id=task-{n}")));
        let killed = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(one);
        };
        let (answers, ()) = tokio::join!(join_all(asked), killed);
        for (n, answer) in answers.into_iter().enumerate() {
            assert!(workers.contains(&done(answer?, Some(n))?));
        }
        let (status, body) = get(format!("{at}/task?task_id=bad-1")).await?;
        assert_eq!((status, &*body), (StatusCode::UNPROCESSABLE_ENTITY, "there is nothing to be done for bad-1"));
        for bad in ["", "?task_id=", "?task_id=a%20b", "?id=7", &format!("?task_id={}", "x".repeat(65))] {
            let (status, body) = get(format!("{at}/task{bad}")).await?;
            assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}: {body}");
            assert!(body.contains("task_id is missing, or not 1 to 64"), "{body}");
        }
        assert_eq!(get(format!("{at}/other")).await?.0, StatusCode::NOT_FOUND);
        assert_eq!(head(format!("{at}/task?task_id=1")).await?.0, StatusCode::METHOD_NOT_ALLOWED);
        Ok(())
    })?;
    other.interrupt()?;
    service.interrupt()?;
    clean(url)
}

/// The worker that did a task.
fn done((status, body): (StatusCode, String), number: Option<usize>) -> Outcome<u64> {
    assert_eq!(status, StatusCode::OK, "{body}");
    let done: Value = serde_json::from_str(&body)?;
    let id = done["task_id"].as_str().ok_or("no id")?;
    assert_eq!(done["result"], format!("task {id} is done"));
    assert!(number.is_none_or(|number| id == format!("task-{number}")), "{body}");
    Ok(done["worker"].as_u64().ok_or("no worker")?)
}

pub(crate) fn too_late(urls: &[String]) -> Outcome {
    let url = &*urls[0];
    clean(url)?;
    let (service, at) = service(url, "1")?;
    // The queue is there, and no worker.
    drop(worker(url)?);
    let (status, body) = block_on(get(format!("{at}/task?task_id=1")))?;
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT, "{body}");
    service.interrupt()?;
    clean(url)
}

fn clean(url: &str) -> Outcome {
    block_on(async {
        let client = anyqueue::connect(url).await?;
        for queue in ["tasks", "tasks-dlq"] {
            client.delete(queue).await?;
        }
        client.close(Duration::from_secs(5)).await;
        Ok(())
    })
}

pub(crate) fn wrong(_: &[String]) -> Outcome {
    assert_eq!(refused(example("tasks", "", &[])?)?, "usage: tasks serve | work\n");
    let mut command = example("tasks", "", &["serve"])?;
    command.env("TIMEOUT", "soon");
    assert_eq!(refused(command)?, "TIMEOUT takes seconds from 1 to 3600, not 'soon'\n");
    for role in ["serve", "work"] {
        let (_, said) = failed(example("tasks", "amqp://127.0.0.1:1", &[role])?)?;
        assert!(said.contains("Connection refused") && said.lines().count() == 1, "{said}");
    }
    let mut command = example("tasks", "memory://", &["serve"])?;
    command.env("LISTEN", "nowhere");
    let (_, said) = failed(command)?;
    assert!(said.starts_with("LISTEN 'nowhere': "), "{said}");
    Ok(())
}
