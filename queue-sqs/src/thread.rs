//! The thread of the receivers.
//!
//! A request of the SDK goes through several tasks and locks. Where the threads of a runtime share them, each wakes the other,
//! and a received message costs more CPU than on one thread, which is enough for the most that a queue hands out. Senders stay
//! with those who send: whoever hands a message to another thread has to wake it.

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
