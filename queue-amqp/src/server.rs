//! What the server says about itself when a connection opens.
//!
//! The client reads it and keeps nothing of it, so the connection is made over a transport that overhears the first
//! frame. Behind that frame it only passes on.

use std::collections::BTreeSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::{DummyIO, Task};
use async_rs::{Runtime, Tokio};
use futures::Stream;
use futures::io::{AsyncRead, AsyncWrite};
use lapin::protocol::connection::AMQPMethod;
use lapin::protocol::{AMQPClass, parse_class};
use lapin::tcp::AsyncTcpStream;
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use parking_lot::Mutex;

use crate::turns::{Cork, Reading};

/// The first frame is about 500 bytes; a longer one is not waited for.
const LONGEST: usize = 64 << 10;
/// Type, channel and length of a frame.
const FRAME_HEADER: usize = 7;

/// What a server says about itself. Empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerInfo {
    pub(crate) product: String,
    /// Major, minor, patch; zeros where it is no such version.
    pub(crate) version: (u16, u16, u16),
    /// What it can do in the protocol, by its own names.
    pub(crate) capabilities: BTreeSet<String>,
}

impl ServerInfo {
    fn new(properties: &FieldTable) -> Self {
        let text = |name: &str| match properties.inner().get(name) {
            Some(AMQPValue::LongString(text)) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
            _ => String::new(),
        };
        let capabilities = match properties.inner().get("capabilities") {
            Some(AMQPValue::FieldTable(table)) => table
                .inner()
                .iter()
                .filter(|(_, able)| **able == AMQPValue::Boolean(true))
                .map(|(name, _)| name.as_str().to_owned())
                .collect(),
            _ => BTreeSet::new(),
        };
        Self { product: text("product"), version: version(&text("version")), capabilities }
    }

    /// Whether it is RabbitMQ of this version or a later one.
    pub(crate) fn is_rabbitmq(&self, major: u16, minor: u16) -> bool {
        self.product == "RabbitMQ" && (self.version.0, self.version.1) >= (major, minor)
    }
}

fn version(text: &str) -> (u16, u16, u16) {
    // What follows the third number (`-rc.1`, `+build`) is of no interest.
    let mut parts = text.split(['.', '-', '+']).map_while(|part| part.parse().ok()).fuse();
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

/// Opens a connection over a stream, and tells what the server said about itself, and what keeps it from writing.
pub(crate) async fn connect(
    uri: AMQPUri,
    properties: ConnectionProperties,
    stream: Transport,
) -> lapin::Result<(Connection, ServerInfo, Cork)> {
    let told = Arc::new(OnceLock::new());
    let (reading, cork) = (Reading::default(), Cork::default());
    let stream =
        Overhearing { inner: stream, heard: Some(Vec::new()), told: told.clone(), reading, cork: cork.clone() };
    let ready = Mutex::new(Some(AsyncTcpStream::Plain(stream)));
    let dial = async move |_, _| ready.lock().take().ok_or_else(|| io::Error::other("one stream, one attempt").into());
    let connection = Connection::connector(uri, Runtime::new(Kit(Tokio::current())), dial, properties).await?;
    Ok((connection, told.get().cloned().unwrap_or_default(), cork))
}

/// What a connection is made over, with TLS or without.
pub(crate) type Transport = AsyncTcpStream<<Tokio as Reactor>::TcpStream>;

/// Tokio, with another kind of stream.
#[derive(Debug, Clone)]
struct Kit(Tokio);

impl RuntimeKit for Kit {}

impl Executor for Kit {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, f: F) -> T {
        self.0.block_on(f)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, f: F) -> Task<Self::Task<T>> {
        self.0.spawn(f)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, f: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(f)
    }
}

impl Reactor for Kit {
    type TcpStream = Overhearing;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H: io::Read + io::Write + Send + 'static>(
        &self,
        _: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        // The connection is opened by `connect` alone.
        Err::<DummyIO, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        std::future::ready(Err(io::ErrorKind::Unsupported.into()))
    }
}

/// A transport of which the first frame is read along.
struct Overhearing {
    inner: Transport,
    /// What came so far; `None` when enough was heard.
    heard: Option<Vec<u8>>,
    told: Arc<OnceLock<ServerInfo>>,
    reading: Reading,
    cork: Cork,
}

impl Overhearing {
    fn is_read(&mut self, cx: &Context<'_>, read: &Poll<io::Result<usize>>) {
        match read {
            Poll::Ready(Ok(1..)) => self.reading.begin(),
            Poll::Pending => self.reading.end(cx),
            Poll::Ready(_) => {}
        }
    }

    fn hear<'a>(&mut self, parts: impl Iterator<Item = &'a [u8]>, mut count: usize) {
        let Some(heard) = &mut self.heard else { return };
        for part in parts {
            let part = &part[..count.min(part.len())];
            heard.extend_from_slice(part);
            count -= part.len();
        }
        match first_frame(heard) {
            Heard::Part => {}
            Heard::Nothing => self.heard = None,
            Heard::Server(info) => {
                let _ = self.told.set(info);
                self.heard = None;
            }
        }
    }
}

#[derive(Debug, PartialEq)]
enum Heard {
    Part,
    /// Something else than a greeting.
    Nothing,
    Server(ServerInfo),
}

fn first_frame(heard: &[u8]) -> Heard {
    let Some((&[_, _, _, a, b, c, d], rest)) = heard.split_first_chunk::<FRAME_HEADER>() else { return Heard::Part };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    if length > LONGEST {
        return Heard::Nothing;
    }
    let Some(frame) = rest.get(..length) else { return Heard::Part };
    match parse_class(frame) {
        Ok((_, AMQPClass::Connection(AMQPMethod::Start(start)))) => {
            Heard::Server(ServerInfo::new(&start.server_properties))
        }
        _ => Heard::Nothing,
    }
}

impl AsyncRead for Overhearing {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        self.reading.pass();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        self.is_read(cx, &read);
        let count = ready!(read)?;
        self.hear(std::iter::once(&*buf), count);
        Poll::Ready(Ok(count))
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        self.reading.pass();
        let read = Pin::new(&mut self.inner).poll_read_vectored(cx, bufs);
        self.is_read(cx, &read);
        let count = ready!(read)?;
        self.hear(bufs.iter().map(|buf| &**buf), count);
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Overhearing {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.reading.pass();
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.reading.pass();
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.reading.pass();
        // Here, because the client flushes before it makes the next frames ready.
        self.cork.pass();
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.reading.pass();
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_far_as_they_are_numbers() {
        for (text, expected) in [
            ("3.10.8", (3, 10, 8)),
            ("4.3.0-rc.1", (4, 3, 0)),
            ("4.3.6+abc", (4, 3, 6)),
            ("5", (5, 0, 0)),
            ("", (0, 0, 0)),
            ("one.2", (0, 0, 0)),
            ("99999.1.1", (0, 0, 0)),
        ] {
            assert_eq!(version(text), expected, "{text}");
        }
    }

    #[test]
    fn only_a_greeting_is_heard() {
        assert_eq!(first_frame(&[1, 0, 0, 0]), Heard::Part);
        assert_eq!(first_frame(&[1, 0, 0, 0, 0, 0, 4, 0]), Heard::Part);
        assert_eq!(first_frame(&[1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 99]), Heard::Nothing);
        assert_eq!(first_frame(&[1, 0, 0, 255, 0, 0, 4]), Heard::Nothing);
        // What a server answers to another protocol.
        assert_eq!(first_frame(b"AMQP\x00\x00\x09\x01"), Heard::Nothing);
    }
}
