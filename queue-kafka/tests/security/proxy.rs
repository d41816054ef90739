//! Networks between a client and a broker: one that counts connections, one that never answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// Passes connections on to a port of this machine.
pub(crate) struct Proxy {
    /// Connections so far.
    accepted: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Listens on the first port, which the broker names as its own.
    pub(crate) async fn between(own: u16, port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", own)).await.unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(serve(listener, port, accepted.clone()));
        Self { accepted, task }
    }

    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, port: u16, accepted: Arc<AtomicUsize>) {
    let mut lines = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await.unwrap();
        accepted.fetch_add(1, Ordering::SeqCst);
        lines.spawn(async move {
            let mut far = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            // Whoever ends it first, it ends.
            let _ = copy_bidirectional(&mut near, &mut far).await;
        });
    }
}

/// Accepts and says nothing.
pub(crate) async fn silent() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                while let Ok(1..) = stream.read(&mut buffer).await {}
            });
        }
    });
    port
}
