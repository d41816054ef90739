//! A link between a client and its broker that can be held up in each direction, slowed and cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What is moved at once; small, so that a slow link is slow all the time and not in bursts.
const CHUNK: usize = 4096;

/// How bytes go in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Open,
    /// Nothing arrives, not even an end, and nothing is lost: what the other side of a network cut sees until it heals.
    Held,
    /// So many bytes a second on each connection.
    Slow(u32),
}

/// The two directions of a link.
#[derive(Debug, Clone, Copy)]
pub(super) enum Towards {
    Broker,
    Client,
}

/// A TCP link on a port of its own, which ends with this.
pub(super) struct Link {
    address: SocketAddr,
    to_broker: Arc<watch::Sender<Flow>>,
    to_client: Arc<watch::Sender<Flow>>,
    task: JoinHandle<()>,
}

impl Link {
    /// Listens, and forwards every connection.
    pub(super) async fn to(upstream: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (to_broker, to_client) =
            (Arc::new(watch::Sender::new(Flow::Open)), Arc::new(watch::Sender::new(Flow::Open)));
        let (forth, back) = (to_broker.clone(), to_client.clone());
        let task = tokio::spawn(async move {
            // Ends the connections with the link.
            let mut pumps = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while pumps.try_join_next().is_some() {}
                let Ok(broker) = TcpStream::connect(upstream).await else { continue };
                let _ = (client.set_nodelay(true), broker.set_nodelay(true));
                let ((client_in, client_out), (broker_in, broker_out)) = (client.into_split(), broker.into_split());
                pumps.spawn(pump(client_in, broker_out, forth.subscribe()));
                pumps.spawn(pump(broker_in, client_out, back.subscribe()));
            }
        });
        Ok(Self { address, to_broker, to_client, task })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets how bytes go in these directions.
    pub(super) fn set(&self, directions: &[Towards], flow: Flow) {
        for direction in directions {
            match direction {
                Towards::Broker => self.to_broker.send_replace(flow),
                Towards::Client => self.to_client.send_replace(flow),
            };
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Moves bytes until one side ends; the end is passed on as the bytes are.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut flow: watch::Receiver<Flow>) {
    let mut bytes = [0; CHUNK];
    while let Ok(count) = from.read(&mut bytes).await {
        let Ok(flow) = flow.wait_for(|flow| *flow != Flow::Held).await.map(|flow| *flow) else { break };
        if count == 0 || to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
        if let Flow::Slow(rate) = flow {
            tokio::time::sleep(Duration::from_secs(1) * u32::try_from(count).unwrap_or(u32::MAX) / rate.max(1)).await;
        }
    }
    let _ = to.shutdown().await;
}
