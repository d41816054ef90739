//! The thread of requests.
//!
//! A request of the SDK goes through several tasks and locks. Where the threads of a runtime share them, each wakes the other,
//! and a message costs more CPU than on one thread, which is enough for the most that a queue hands out or takes. Verdicts of sent
//! messages are given elsewhere: to wake many who send from here costs more than is saved.

use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// A runtime of one thread. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Thread {
    pub(crate) handle: Handle,
    /// The thread ends with the last of these, and what still runs there with it: so each task holds one.
    _ends: Arc<oneshot::Sender<()>>,
}

impl Thread {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (ends, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("anyqueue-sqs".to_owned()).spawn(move || {
            // An error is the end: nobody holds the other side any more.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { handle, _ends: Arc::new(ends) })
    }
}
