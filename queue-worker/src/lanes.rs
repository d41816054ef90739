//! Tasks in which handlers run, one behind the other.
//!
//! To start a task for each handler is a large part of what the worker costs, most of all where one core does the work: the
//! runtime's list of tasks is locked twice, and what is allocated for it is aligned so that the allocator keeps nothing ready. So a
//! task that has run a handler takes the next, and there are about as many as handlers ever ran at once.

use std::future::poll_fn;
use std::mem::replace;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::task::{AbortHandle, spawn};

/// Tasks that ended before their time are taken out when there are as many, or twice as many as are left.
const SWEEP: usize = 128;

/// The tasks of a worker.
///
/// Dropped, those that have nothing to run end; the others end behind their handler.
#[derive(Debug)]
pub(crate) struct Lanes {
    free: Arc<Free>,
    tasks: Vec<AbortHandle>,
    /// How many of those there are when the ended ones are taken out.
    sweep: usize,
}

/// Those that have nothing to run. `None` once nothing more comes.
type Free = Mutex<Option<Vec<Arc<Lane>>>>;

impl Lanes {
    pub(crate) fn new() -> Self {
        Self { free: Arc::new(Mutex::new(Some(Vec::new()))), tasks: Vec::new(), sweep: SWEEP }
    }

    /// Runs a handler beside all others.
    pub(crate) fn run(&mut self, mut handler: BoxFuture<'static, ()>) {
        loop {
            let free = self.free.lock().as_mut().and_then(Vec::pop);
            let Some(lane) = free else { return self.begin(handler) };
            match lane.give(handler) {
                Ok(()) => return,
                // Its runtime is gone; another may be there.
                Err(back) => handler = back,
            }
        }
    }

    fn begin(&mut self, handler: BoxFuture<'static, ()>) {
        if self.tasks.len() >= self.sweep {
            self.tasks.retain(|task| !task.is_finished());
            self.sweep = SWEEP.max(2 * self.tasks.len());
        }
        let lane = Arc::new(Lane(Mutex::new(Seat::Taken(handler))));
        self.tasks.push(spawn(Driver { lane, free: self.free.clone() }.drive()).abort_handle());
    }

    /// Drops all handlers, each as soon as it waits for something.
    pub(crate) fn abort(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        let free = self.free.lock().take();
        free.into_iter().flatten().for_each(|lane| lane.end());
    }
}

/// Where a task takes its next handler from.
#[derive(Debug)]
struct Lane(Mutex<Seat>);

enum Seat {
    /// The task waits, once it has said whom to wake.
    Empty(Option<Waker>),
    Taken(BoxFuture<'static, ()>),
    /// The task takes no more.
    Gone,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty(_) => "Empty",
            Self::Taken(_) => "Taken",
            Self::Gone => "Gone",
        })
    }
}

impl Lane {
    /// Gives a free one a handler; back comes what it does not take any more.
    fn give(&self, handler: BoxFuture<'static, ()>) -> Result<(), BoxFuture<'static, ()>> {
        let mut seat = self.0.lock();
        let Seat::Empty(waker) = &mut *seat else { return Err(handler) };
        let waker = waker.take();
        *seat = Seat::Taken(handler);
        drop(seat);
        waker.into_iter().for_each(Waker::wake);
        Ok(())
    }

    fn end(&self) {
        // Not under the lock: what is dropped there may do anything.
        let before = replace(&mut *self.0.lock(), Seat::Gone);
        if let Seat::Empty(Some(waker)) = before {
            waker.wake();
        }
    }

    /// The next handler; `None` once there comes no more.
    fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<BoxFuture<'static, ()>>> {
        let mut seat = self.0.lock();
        match replace(&mut *seat, Seat::Empty(None)) {
            Seat::Taken(handler) => Poll::Ready(Some(handler)),
            Seat::Empty(_) => {
                *seat = Seat::Empty(Some(cx.waker().clone()));
                Poll::Pending
            }
            Seat::Gone => {
                *seat = Seat::Gone;
                Poll::Ready(None)
            }
        }
    }
}

/// The task behind a lane.
struct Driver {
    lane: Arc<Lane>,
    free: Arc<Free>,
}

impl Driver {
    async fn drive(self) {
        while let Some(handler) = poll_fn(|cx| self.lane.poll_next(cx)).await {
            handler.await;
            match &mut *self.free.lock() {
                Some(free) => free.push(self.lane.clone()),
                None => return,
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.lane.end();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use tokio::runtime::Builder;
    use tokio::sync::{mpsc, oneshot};
    use tokio::task;
    use tokio::time::timeout;

    use super::*;

    /// Waits until so many tasks have nothing to run.
    async fn free(lanes: &Lanes, count: usize) {
        while lanes.free.lock().as_ref().map_or(0, Vec::len) < count {
            task::yield_now().await;
        }
    }

    async fn ended(tasks: &[AbortHandle]) {
        while !tasks.iter().all(AbortHandle::is_finished) {
            task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_task_runs_one_handler_after_the_other() {
        let (mut lanes, (ids, mut ran)) = (Lanes::new(), mpsc::unbounded_channel());
        for round in 0..100 {
            for _ in 0..3 {
                let ids = ids.clone();
                lanes.run(Box::pin(async move {
                    task::yield_now().await;
                    ids.send(task::id()).unwrap();
                }));
            }
            free(&lanes, 3).await;
            assert_eq!(lanes.tasks.len(), 3, "in round {round}");
        }
        drop(ids);
        let mut seen = Vec::new();
        while let Some(id) = ran.recv().await {
            seen.push(id);
        }
        assert_eq!((seen.len(), seen.iter().collect::<HashSet<_>>().len()), (300, 3));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_given_to_a_task_while_it_becomes_free_is_run() {
        let (mut lanes, mut tasks) = (Lanes::new(), HashSet::new());
        for round in 0..100_000 {
            let (told, heard) = oneshot::channel();
            lanes.run(Box::pin(async move { told.send(task::id()).unwrap() }));
            // The next is given when this one has told, which is before its task is free or has looked for another.
            let ran = timeout(Duration::from_secs(10), heard).await;
            tasks.insert(ran.unwrap_or_else(|_| panic!("{round} is lost")).unwrap());
        }
        assert!(tasks.len() <= 3, "one ends while another begins: {}", tasks.len());
    }

    #[tokio::test]
    async fn handlers_go_on_when_the_worker_is_gone_and_nothing_is_left_behind_them() {
        let (mut lanes, (end, wait), (told, heard)) = (Lanes::new(), oneshot::channel::<()>(), oneshot::channel());
        lanes.run(Box::pin(async {}));
        lanes.run(Box::pin(async {
            wait.await.unwrap();
            told.send(()).unwrap();
        }));
        free(&lanes, 1).await;
        let tasks = std::mem::take(&mut lanes.tasks);
        drop(lanes);
        ended(&tasks[..1]).await;
        assert!(!tasks[1].is_finished());
        end.send(()).unwrap();
        heard.await.unwrap();
        ended(&tasks).await;
    }

    #[tokio::test]
    async fn aborted_handlers_are_dropped() {
        let (mut lanes, (held, dropped)) = (Lanes::new(), oneshot::channel::<()>());
        lanes.run(Box::pin(async move {
            let _held = held;
            std::future::pending().await
        }));
        lanes.run(Box::pin(async {}));
        free(&lanes, 1).await;
        lanes.abort();
        dropped.await.unwrap_err();
        ended(&lanes.tasks).await;
    }

    #[tokio::test]
    async fn a_task_that_panics_is_not_used_again() {
        let mut lanes = Lanes::new();
        for _ in 0..3 * SWEEP {
            let (told, heard) = oneshot::channel();
            lanes.run(Box::pin(async move {
                let _told = told;
                // Without the hook, which prints.
                std::panic::resume_unwind(Box::new("on purpose"))
            }));
            let _: Result<(), _> = heard.await;
        }
        assert!(lanes.tasks.len() <= SWEEP, "those that ended are taken out");
        let (told, heard) = oneshot::channel();
        lanes.run(Box::pin(async { told.send(()).unwrap() }));
        heard.await.unwrap();
    }

    #[tokio::test]
    async fn a_handler_that_has_not_begun_is_dropped_with_the_rest() {
        let (mut lanes, (held, dropped)) = (Lanes::new(), oneshot::channel::<()>());
        lanes.run(Box::pin(async {}));
        free(&lanes, 1).await;
        lanes.run(Box::pin(async move {
            let _held = held;
            panic!("it was aborted before");
        }));
        assert_eq!(lanes.tasks.len(), 1);
        lanes.abort();
        dropped.await.unwrap_err();
    }

    #[test]
    fn where_a_runtime_is_gone_another_runs_the_next_handler() {
        let mut lanes = Lanes::new();
        let runtime = || Builder::new_current_thread().build().unwrap();
        runtime().block_on(async {
            lanes.run(Box::pin(async {}));
            lanes.run(Box::pin(async {}));
            free(&lanes, 2).await;
        });
        let (told, heard) = oneshot::channel();
        runtime().block_on(async {
            lanes.run(Box::pin(async { told.send(()).unwrap() }));
            heard.await.unwrap();
        });
    }
}
