//! The thread of the receivers.
//!
//! A request of the SDK goes through several tasks and locks. Where the threads of a runtime share them, each wakes the other,
//! and a received message costs more CPU than on one thread, which is enough for the most that a queue hands out. Senders stay
//! with those who send: whoever hands a message to another thread has to wake it.

use std::io;

use tokio::runtime::{Builder, Handle, RuntimeFlavor};
use tokio::sync::oneshot;

/// Where the tasks of receivers run.
pub(crate) struct Thread {
    pub(crate) handle: Handle,
    /// The thread ends when this is dropped, and with it what still runs there.
    _ends: Option<oneshot::Sender<()>>,
}

impl Thread {
    /// A thread beside a runtime that has several; one that has only one is as good, and is taken.
    pub(crate) fn start() -> Self {
        let current = Handle::current();
        if current.runtime_flavor() == RuntimeFlavor::CurrentThread {
            return Self { handle: current, _ends: None };
        }
        Self::start_another().unwrap_or_else(|error| {
            tracing::debug!(%error, "no thread for SQS: its tasks run with all others");
            Self { handle: current, _ends: None }
        })
    }

    fn start_another() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (ends, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("anyqueue-sqs".to_owned()).spawn(move || {
            // An error is the end as well: nobody holds the other side any more.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { handle, _ends: Some(ends) })
    }
}
