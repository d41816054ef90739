//! Named tasks.

use std::sync::Arc;

use anyqueue::ErrorKind;
use anyqueue::worker::{Failure, RunTask, TaskClient, Tasks, codec};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::Outcome;
use crate::place::Place;
use crate::serving::{Stage, soon};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Size {
    width: u32,
    height: u32,
}

async fn halve(size: Size) -> Result<Size, Failure> {
    if size.width == 0 {
        return Err(Failure::permanent("nothing can be halved"));
    }
    Ok(Size { width: size.width / 2, height: size.height / 2 })
}

pub(crate) async fn a_task_runs_and_its_result_comes_back(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "task").await?;
    let area = |size: Size| async move { Ok::<_, Failure>(size.width * size.height) };
    let serving = stage.serve(Tasks::new().task("halve", halve).task("area", area)).await?;
    let tasks = TaskClient::new(&stage.client).at(stage.queue.as_str())?;
    let half: Size = tasks.run("halve", &Size { width: 8, height: 6 }).await?;
    assert_eq!(half, Size { width: 4, height: 3 });
    assert_eq!(tasks.run::<_, u32>("area", &half).await?, 12);
    let error = tasks.run::<_, Size>("halve", &Size { width: 0, height: 0 }).await.err().ok_or("it was done")?;
    assert_eq!((error.kind(), error.message()), (ErrorKind::Remote, "nothing can be halved"));
    // It is done, and not what was expected.
    let error = tasks.run::<_, Vec<String>>("area", &half).await.err().ok_or("it was read")?;
    assert_eq!((error.kind(), error.outcome()), (ErrorKind::Codec, anyqueue::Outcome::Unknown), "{error}");
    let by_extension: Size = stage.client.run_task("halve", &half).at(stage.queue.as_str())?.await?;
    assert_eq!(by_extension, Size { width: 2, height: 1 });
    serving.stop().await?;
    let packed = Tasks::with_codec::<codec::MessagePack>().task("halve", halve);
    let serving = stage.serve(packed).await?;
    let tasks = tasks.codec::<codec::MessagePack>();
    assert_eq!(tasks.run::<_, Size>("halve", &half).await?, by_extension);
    serving.stop().await?;
    stage.clear().await
}

pub(crate) async fn an_unknown_task_is_an_error_that_names_no_others(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "unknown").await?;
    let serving = stage.serve(Tasks::new().task("secret-halve", halve)).await?;
    let tasks = TaskClient::new(&stage.client).at(stage.queue.as_str())?;
    let error = tasks.run::<_, u32>("double", &1).await.err().ok_or("it was done")?;
    assert_eq!((error.kind(), error.context("sort")), (ErrorKind::Remote, Some("permanent")), "{error}");
    assert_eq!(error.message(), "there is no task \"double\" among the 1 of this worker");
    assert_eq!(serving.stop().await?.counts.dead_lettered, 1);
    stage.clear().await
}

pub(crate) async fn a_task_that_is_sent_runs(place: Arc<Place>) -> Outcome {
    let stage = Stage::new(place, "sent").await?;
    let (told, mut heard) = mpsc::unbounded_channel();
    let note = move |n: u32| {
        let told = told.clone();
        async move { told.send(n).map_err(|e| e.to_string()) }
    };
    let serving = stage.serve(Tasks::new().task("note", note)).await?;
    let tasks = TaskClient::new(&stage.client).at(stage.queue.as_str())?;
    tasks.send("note", &7_u32).await?;
    assert_eq!(soon(heard.recv()).await?, Some(7));
    serving.stop().await?;
    stage.clear().await
}
