//! One attempt to connect: name, TCP, TLS, handshake.

use std::net::Shutdown;
use std::time::Duration;

use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};
use lapin::{Connection, ConnectionProperties};
use queue_core::{Error, ErrorKind, Result};
use socket2::{SockRef, Socket};
use tokio::net::lookup_host;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::auth::Credentials;
use crate::config::Target;
use crate::error::{map, map_io};
use crate::server::{self, ServerInfo};
use crate::turns::Cork;

/// How long a connection that nobody holds any more may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// The socket under a connection.
///
/// The client waits without end, with a thread of its own, for a server that accepts and then says nothing: in the
/// handshake, and after a close. Here is who hangs up then.
pub(crate) struct Line(Option<Socket>);

impl Line {
    /// Ends the connection at once.
    pub(crate) fn hang_up(&self) {
        if let Some(socket) = &self.0 {
            // It may be gone already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Line {
    /// Leaves the client a moment to write what it still has.
    fn drop(&mut self) {
        if let (Some(socket), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(async move {
                sleep(GOODBYE).await;
                let _ = socket.shutdown(Shutdown::Both);
            });
        }
    }
}

/// Hangs up unless the handshake comes to its end.
struct Attempt(Option<Line>);

impl Drop for Attempt {
    fn drop(&mut self) {
        if let Some(line) = &self.0 {
            line.hang_up();
        }
    }
}

/// A connection that was made.
pub(crate) struct Dialed {
    pub(crate) connection: Connection,
    pub(crate) server: ServerInfo,
    pub(crate) cork: Cork,
    pub(crate) line: Line,
}

/// The time by which the first of so many attempts has to be over, so that the others have theirs.
pub(crate) fn share(deadline: Instant, attempts: usize) -> Instant {
    let now = Instant::now();
    now + deadline.saturating_duration_since(now) / u32::try_from(attempts.max(1)).unwrap_or(u32::MAX)
}

/// Connects to one host. May be dropped at any time, and then leaves nothing behind.
pub(crate) async fn dial(
    target: &Target,
    (name, port): (&str, u16),
    credentials: &Credentials,
    properties: ConnectionProperties,
    deadline: Instant,
) -> Result<Dialed> {
    let in_time = || Error::new(ErrorKind::Connection, "the host did not answer in time").with_operation("connect");
    let lookup = timeout_at(deadline, lookup_host((name, port))).await.map_err(|_| in_time())?;
    let addresses: Vec<_> = lookup.map_err(|e| map_io(&e, "connect"))?.collect();
    let runtime = lapin::runtime::default_runtime().map_err(|e| map(&e, "connect"))?;
    let mut stream = Err(Error::new(ErrorKind::Connection, "the host has no address").with_operation("connect"));
    for (tried, address) in addresses.iter().enumerate() {
        // An address that swallows packets leaves time for the others.
        let until = share(deadline, addresses.len() - tried);
        stream = match timeout_at(until, AsyncTcpStream::connect(&runtime, *address)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(map_io(&error, "connect")),
            Err(_) => Err(in_time()),
        };
        if stream.is_ok() {
            break;
        }
    }
    let mut stream = stream?;
    let socket = match &stream {
        AsyncTcpStream::Plain(plain) => {
            Some(SockRef::from(plain.get_ref()).try_clone().map_err(|e| map_io(&e, "connect"))?)
        }
        _ => None,
    };
    let mut attempt = Attempt(Some(Line(socket)));
    if let Some(tls) = &target.tls {
        let connector = tls.connector().await?;
        let handshake = timeout_at(deadline, stream.into_rustls(&connector, tls.name_of(name))).await;
        stream = handshake.map_err(|_| in_time())?.map_err(|e| map_io(&e, "connect"))?;
    }
    let connect = server::connect(uri(target, (name, port), credentials), properties, stream);
    let connected = timeout_at(deadline, connect).await.map_err(|_| in_time())?;
    let (connection, server, cork) = connected.map_err(|e| refused(target, &e))?;
    match attempt.0.take() {
        Some(line) => Ok(Dialed { connection, server, cork, line }),
        None => Err(Error::new(ErrorKind::Internal, "a connection without a socket")),
    }
}

/// Why the handshake failed. Some servers just close, and some do it so fast that what they said is lost.
fn refused(target: &Target, error: &lapin::Error) -> Error {
    let tls = target.tls.as_ref();
    let hint = match tls {
        None => "; where it expects TLS the scheme is amqps",
        Some(tls) if tls.has_identity() => "; it may not accept the client certificate",
        Some(_) => "; it may want a client certificate",
    };
    let mapped = map(error, "connect");
    let (said, retryable) = match error.kind() {
        lapin::ErrorKind::ParsingError(_) | lapin::ErrorKind::InvalidProtocolVersion(_) => {
            ("the server does not speak AMQP 0-9-1 on this port", false)
        }
        lapin::ErrorKind::IOError(_) if mapped.is_retryable() => {
            ("the server closed the connection in the handshake", true)
        }
        _ => return mapped,
    };
    Error::new(ErrorKind::Connection, format!("{said}{hint}"))
        .with_retryable(retryable)
        .with_operation("connect")
        .with_source(error.clone())
}

fn uri(target: &Target, (host, port): (&str, u16), credentials: &Credentials) -> AMQPUri {
    let (mechanism, (username, password)) = match &credentials.login {
        Some((user, secret)) => (SASLMechanism::Plain, (user.clone(), secret.expose().to_owned())),
        None => (SASLMechanism::External, (String::new(), String::new())),
    };
    AMQPUri {
        scheme: if target.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority { userinfo: AMQPUserInfo { username, password }, host: host.to_owned(), port },
        vhost: target.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(target.heartbeat),
            auth_mechanism: Some(mechanism),
            ..AMQPQueryString::default()
        },
    }
}
