//! A network that can be cut, and made to swallow everything.
#![allow(dead_code, reason = "every test program uses a part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

/// Passes connections on to a port of this machine.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// What is read is passed on to nobody, in either direction.
    pub(crate) swallow: Arc<AtomicBool>,
    /// Connections so far.
    pub(crate) accepted: Arc<AtomicUsize>,
    /// Connections that their client has not ended.
    pub(crate) held: Arc<AtomicUsize>,
    scissors: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let (swallow, accepted) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (held, scissors) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let task =
            tokio::spawn(serve(listener, port, swallow.clone(), accepted.clone(), held.clone(), scissors.clone()));
        Self { port: own, swallow, accepted, held, scissors, task }
    }

    /// Ends every connection of now.
    pub(crate) fn cut(&self) {
        self.scissors.notify_one();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: TcpListener,
    port: u16,
    swallow: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    held: Arc<AtomicUsize>,
    scissors: Arc<Notify>,
) {
    let mut lines = JoinSet::new();
    loop {
        let near = tokio::select! {
            near = listener.accept() => near,
            () = scissors.notified() => {
                lines.abort_all();
                continue;
            }
        };
        let Ok((near, _)) = near else { return };
        accepted.fetch_add(1, Ordering::SeqCst);
        let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        held.fetch_add(1, Ordering::SeqCst);
        let (up, held) = (pass(near_in, far_out, swallow.clone()), Held(held.clone()));
        lines.spawn(async move {
            let _held = held;
            up.await;
        });
        lines.spawn(pass(far_in, near_out, swallow.clone()));
    }
}

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, swallow: Arc<AtomicBool>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if !swallow.load(Ordering::SeqCst) && to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
