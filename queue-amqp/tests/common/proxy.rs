//! A network between client and broker that can be slow, silent, and cut.

use std::sync::Arc;
use std::time::Duration;

use queue_core::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

/// How much may be on its way at once, in reads.
const ON_THE_WAY: usize = 1024;

/// What happens to what the broker says. What the client says always arrives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Back {
    After(Duration),
    /// Kept until it is changed.
    Held,
}

pub(crate) struct Proxy {
    /// The URL of the broker by way of this.
    pub(crate) url: String,
    back: watch::Sender<Back>,
    connections: Arc<parking_lot::Mutex<Vec<AbortHandle>>>,
    listening: AbortHandle,
}

impl Proxy {
    pub(crate) async fn start(url: &str) -> Self {
        let endpoint: Endpoint = url.parse().unwrap();
        let host = endpoint.hosts[0].clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let login = url.rsplit_once('@').expect("a login").0;
        let (back, said) = watch::channel(Back::After(Duration::ZERO));
        let connections = Arc::<parking_lot::Mutex<Vec<AbortHandle>>>::default();
        let listening = tokio::spawn({
            let connections = connections.clone();
            async move {
                loop {
                    let (client, _) = listener.accept().await.unwrap();
                    let broker = TcpStream::connect((host.name.as_str(), host.port.unwrap_or(5672))).await;
                    let Ok(broker) = broker else { continue };
                    connections.lock().push(tokio::spawn(join(client, broker, said.clone())).abort_handle());
                }
            }
        });
        Self { url: format!("{login}@127.0.0.1:{port}"), back, connections, listening: listening.abort_handle() }
    }

    pub(crate) fn set(&self, back: Back) {
        self.back.send_replace(back);
    }

    /// Ends all connections, with what is held.
    pub(crate) fn cut(&self) {
        self.connections.lock().drain(..).for_each(|c| c.abort());
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
        self.cut();
    }
}

/// Ends with either side.
async fn join(client: TcpStream, broker: TcpStream, mut back: watch::Receiver<Back>) {
    client.set_nodelay(true).unwrap();
    broker.set_nodelay(true).unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_broker, mut to_broker) = broker.into_split();
    let (into, mut out) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    let hear = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from_broker.read(&mut buffer).await {
            if into.send((Instant::now(), buffer[..read].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let tell = async {
        while let Some((heard, bytes)) = out.recv().await {
            loop {
                let now = *back.borrow_and_update();
                match now {
                    Back::After(wait) => {
                        sleep_until(heard + wait).await;
                        break;
                    }
                    Back::Held => {
                        if back.changed().await.is_err() {
                            return;
                        }
                    }
                }
            }
            if to_client.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        _ = copy(&mut from_client, &mut to_broker) => {}
        () = hear => {}
        () = tell => {}
    }
}
