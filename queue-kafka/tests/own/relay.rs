//! A relay between clients and a broker of Kafka.
//!
//! A broker tells its clients where it listens, and that is where they go on: a plain relay would see their first
//! connection only. This one puts another port into the broker's answers: its own, or the one that a client names in its
//! client id (see [`behind`]), so that a further link can stand before it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// How the broker's host stands in its answers, before four bytes with the port.
const HOST: &[u8] = b"127.0.0.1";
const MARK: &str = "behind-";

/// The client id of a client that reaches the relay through a link at this port.
pub(crate) fn behind(port: u16) -> String {
    format!("{MARK}{port}")
}

/// The key of the request that ends a transaction.
const END_TXN: [u8; 2] = 26_u16.to_be_bytes();

/// What becomes of the next request that ends a transaction. After it nothing passes, in either direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum End {
    #[default]
    Passes,
    /// The broker gets it, and its answer is lost.
    Unanswered,
    /// The broker never gets it.
    Swallowed,
    /// It has been.
    Silent,
}

/// Forwards connections from a port of its own as long as the process lives.
#[derive(Clone, Default)]
pub(crate) struct Relay {
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    end: Arc<Mutex<End>>,
}

impl Relay {
    /// Listens on loopback for what is meant for the broker at the other port.
    pub(crate) fn start(port: u16, broker: u16) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let relay = Self::default();
        let (connections, end) = (relay.connections.clone(), relay.end.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                while let Ok((client, _)) = listener.accept().await {
                    let end = end.clone();
                    let task = tokio::spawn(async move { drop(forward(client, port, broker, end).await) });
                    let mut connections = connections.lock();
                    connections.retain(|connection: &AbortHandle| !connection.is_finished());
                    connections.push(task.abort_handle());
                }
                io::Result::Ok(())
            })
        });
        Ok(relay)
    }

    /// Says what becomes of the next request that ends a transaction.
    pub(crate) fn at_the_end(&self, end: End) {
        *self.end.lock() = end;
    }

    /// Whether it has come.
    pub(crate) fn is_silent(&self) -> bool {
        *self.end.lock() == End::Silent
    }

    /// Everything passes again, on new connections.
    pub(crate) fn heal(&self) {
        self.cut();
        self.at_the_end(End::Passes);
    }

    /// Cuts every connection; new ones work.
    pub(crate) fn cut(&self) {
        self.connections.lock().drain(..).for_each(|connection| connection.abort());
    }
}

async fn forward(client: TcpStream, port: u16, broker: u16, end: Arc<Mutex<End>>) -> io::Result<()> {
    let upstream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], broker))).await?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let ((mut from_client, to_client), (from_broker, mut to_broker)) = (client.into_split(), upstream.into_split());
    // The head of a request: size, api, version, number, client id.
    let mut head = [0; 14];
    from_client.read_exact(&mut head).await?;
    let mut name = vec![0; usize::from(u16::from_be_bytes([head[12], head[13]]))];
    from_client.read_exact(&mut name).await?;
    to_broker.write_all(&head).await?;
    to_broker.write_all(&name).await?;
    let size = u64::from(u32::from_be_bytes([head[0], head[1], head[2], head[3]]));
    let rest = (size + 4).saturating_sub((head.len() + name.len()) as u64);
    copy(&mut (&mut from_client).take(rest), &mut to_broker).await?;
    let named = std::str::from_utf8(&name).ok().and_then(|name| name.strip_prefix(MARK)?.parse().ok());
    tokio::select! {
        ended = requests(from_client, to_broker, &end) => ended?,
        ended = answers(from_broker, to_client, broker, named.unwrap_or(port), &end) => ended?,
    }
    Ok(())
}

/// Passes requests on, one by one, as far as they are to pass.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, end: &Mutex<End>) -> io::Result<()> {
    let mut request = Vec::new();
    loop {
        let size = from.read_u32().await?;
        request.resize(size as usize, 0);
        from.read_exact(&mut request).await?;
        let passes = {
            let mut end = end.lock();
            let before = *end;
            if before != End::Passes && request.starts_with(&END_TXN) {
                *end = End::Silent;
            }
            before == End::Unanswered || *end != End::Silent
        };
        if passes {
            to.write_u32(size).await?;
            to.write_all(&request).await?;
        }
    }
}

/// Passes answers on, one by one, with the port in the place of the broker's.
async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    broker: u16,
    port: u16,
    end: &Mutex<End>,
) -> io::Result<()> {
    let theirs = [HOST, &u32::from(broker).to_be_bytes()].concat();
    let ours = [HOST, &u32::from(port).to_be_bytes()].concat();
    let mut answer = Vec::new();
    loop {
        let size = from.read_u32().await?;
        answer.resize(size as usize, 0);
        from.read_exact(&mut answer).await?;
        if *end.lock() == End::Silent {
            continue;
        }
        let mut at = 0;
        while let Some(next) = answer[at..].windows(theirs.len()).position(|bytes| bytes == theirs) {
            answer[at + next..at + next + ours.len()].copy_from_slice(&ours);
            at += next + ours.len();
        }
        to.write_u32(size).await?;
        to.write_all(&answer).await?;
    }
}
