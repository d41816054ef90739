//! One connection that comes back by itself.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, EventKind, Events, HealthState, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

use crate::config::Target;
use crate::error::{map, not_connected, within};

/// First wait before a reconnect; doubled up to the configured maximum.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// How often the state is looked at, for losses that the client reports by no event.
const LOOK: Duration = Duration::from_millis(500);

/// A connection from its handshake to its loss.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    /// The host, without login.
    host: String,
}

/// Ends its task when dropped.
#[derive(Debug)]
pub(crate) struct Task(pub(crate) JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why the broker takes no messages on a connection now; `None` while it does.
pub(crate) type Blocked = watch::Receiver<Option<Arc<str>>>;

/// A connection to the broker, supervised.
pub(crate) struct Link {
    shared: Arc<Shared>,
    supervisor: Mutex<Option<Task>>,
}

struct Shared {
    role: &'static str,
    target: Target,
    sessions: watch::Sender<Option<Arc<Session>>>,
    events: Events,
    problem: Mutex<Option<(HealthState, String)>>,
    blocked: watch::Sender<Option<Arc<str>>>,
}

impl Link {
    /// Connects for the first time, and fails when that fails.
    pub(crate) async fn open(target: Target, role: &'static str, events: Events, deadline: Instant) -> Result<Self> {
        let shared = Arc::new(Shared {
            role,
            target,
            sessions: watch::Sender::new(None),
            events,
            problem: Mutex::new(None),
            blocked: watch::Sender::new(None),
        });
        let session = shared.connect(0, deadline).await?;
        let listener = session.connection.events_listener();
        shared.up(&session);
        let supervisor = Task(tokio::spawn(shared.clone().supervise(session, Box::pin(listener))));
        Ok(Self { shared, supervisor: Mutex::new(Some(supervisor)) })
    }

    /// Present and later sessions; `None` while disconnected.
    pub(crate) fn sessions(&self) -> watch::Receiver<Option<Arc<Session>>> {
        self.shared.sessions.subscribe()
    }

    /// Why the broker takes no messages, from now on.
    pub(crate) fn blocked(&self) -> Blocked {
        self.shared.blocked.subscribe()
    }

    /// Opens a channel, on a connection that is awaited until the deadline.
    pub(crate) async fn channel(&self, deadline: Instant) -> Result<Channel> {
        open_channel(&mut self.sessions(), deadline).await
    }

    /// What is wrong now.
    pub(crate) fn problem(&self) -> Option<(HealthState, String)> {
        self.shared.problem.lock().clone()
    }

    /// Closes the connection and stops reconnecting.
    pub(crate) async fn close(&self, deadline: Instant) -> Result<()> {
        drop(self.supervisor.lock().take());
        let session = self.shared.sessions.send_replace(None);
        self.shared.set_problem(None);
        match session {
            Some(session) if session.connection.status().connected() => {
                within(deadline, "close", session.connection.close(200, "OK".into())).await
            }
            _ => Ok(()),
        }
    }
}

/// Opens a channel, on a connection that is awaited until the deadline.
pub(crate) async fn open_channel(
    sessions: &mut watch::Receiver<Option<Arc<Session>>>,
    deadline: Instant,
) -> Result<Channel> {
    loop {
        let session = match timeout_at(deadline, sessions.wait_for(Option::is_some)).await {
            Ok(Ok(session)) => session.clone(),
            Ok(Err(_)) => return Err(Error::closed("broker")),
            Err(_) => None,
        };
        let Some(session) = session else { return Err(not_connected()) };
        if session.connection.status().connected() {
            return within(deadline, "open channel", session.connection.create_channel()).await;
        }
        // Lost, and the supervisor is about to say so.
        match timeout_at(deadline, sessions.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Error::closed("broker")),
            Err(_) => return Err(not_connected()),
        }
    }
}

impl Shared {
    /// Connects to the first host that answers, beginning with the one at `start`.
    async fn connect(&self, start: usize, deadline: Instant) -> Result<Arc<Session>> {
        let hosts = &self.target.hosts;
        let mut failure = None;
        for tried in 0..hosts.len() {
            let (name, port) = &hosts[(start + tried) % hosts.len()];
            // A host that swallows packets leaves time for the others.
            let left = u32::try_from(hosts.len() - tried).unwrap_or(u32::MAX);
            let until = Instant::now() + deadline.saturating_duration_since(Instant::now()) / left;
            let host = if name.contains(':') { format!("[{name}]:{port}") } else { format!("{name}:{port}") };
            match timeout_at(until, Connection::connect_uri(self.uri(name, *port), self.properties())).await {
                Ok(Ok(connection)) => return Ok(Arc::new(Session { connection, host })),
                Ok(Err(error)) => {
                    let error = map(&error, "connect").with_context("host", &host);
                    // The server was reached and said no: the others will say the same.
                    if matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::NotFound) {
                        return Err(error.with_context("user", &self.target.user));
                    }
                    failure = Some(error);
                }
                Err(_) => {
                    let error = Error::new(ErrorKind::Connection, "the host did not answer in time");
                    failure = Some(error.with_operation("connect").with_context("host", &host));
                }
            }
        }
        Err(failure.unwrap_or_else(not_connected))
    }

    fn uri(&self, host: &str, port: u16) -> AMQPUri {
        AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: self.target.user.clone(),
                    password: self.target.password.expose().to_owned(),
                },
                host: host.to_owned(),
                port,
            },
            vhost: self.target.vhost.clone(),
            query: AMQPQueryString { heartbeat: Some(self.target.heartbeat), ..AMQPQueryString::default() },
        }
    }

    fn properties(&self) -> ConnectionProperties {
        let name = format!("{} ({})", self.target.config.connection_name, self.role);
        ConnectionProperties::default().with_connection_name(name.into())
    }

    fn up(&self, session: &Arc<Session>) {
        self.set_problem(None);
        self.sessions.send_replace(Some(session.clone()));
        self.events.emit(EventKind::Connected, &session.host, None);
    }

    fn set_problem(&self, problem: Option<(HealthState, String)>) {
        self.events.set_problem(&format!("amqp {} connection", self.role), problem.clone());
        *self.problem.lock() = problem;
    }

    async fn supervise(
        self: Arc<Self>,
        mut session: Arc<Session>,
        mut listener: std::pin::Pin<Box<dyn Stream<Item = Event> + Send>>,
    ) {
        let mut attempt = 0_usize;
        loop {
            let error = self.lost(&session, &mut listener).await.with_context("host", &session.host);
            self.set_problem(Some((HealthState::Down, format!("{} connection: {error}", self.role))));
            self.sessions.send_replace(None);
            self.events.emit(EventKind::Disconnected, &session.host, Some(error));
            let mut backoff = MIN_BACKOFF;
            session = loop {
                // Between half and all of it, so that a thousand clients do not come back at once.
                sleep(backoff.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                backoff = (backoff * 2).min(self.target.config.max_backoff);
                attempt += 1;
                match self.connect(attempt, Instant::now() + self.target.connect_timeout).await {
                    Ok(session) => break session,
                    Err(error) => {
                        tracing::debug!(%error, "reconnect failed");
                        self.set_problem(Some((HealthState::Down, format!("{} connection: {error}", self.role))));
                    }
                }
            };
            listener = Box::pin(session.connection.events_listener());
            self.up(&session);
        }
    }

    /// Waits until the connection is lost; reports what happens before.
    async fn lost(&self, session: &Session, listener: &mut (dyn Stream<Item = Event> + Send + Unpin)) -> Error {
        let status = session.connection.status();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut blocked = false;
        let mut last = None;
        let mut listening = true;
        while status.connected() {
            let event = tokio::select! {
                event = listener.next(), if listening => event,
                _ = look.tick() => continue,
            };
            match event {
                Some(Event::ConnectionBlocked(reason)) if !blocked => {
                    blocked = true;
                    self.blocked.send_replace(Some(reason.to_string().into()));
                    let problem = format!("{} connection: blocked by the broker: {reason}", self.role);
                    self.set_problem(Some((HealthState::Down, problem.clone())));
                    let error = Error::new(ErrorKind::Throttled, problem).with_context("host", &session.host);
                    self.events.emit(EventKind::Blocked, &session.host, Some(error));
                }
                Some(Event::ConnectionUnblocked) if blocked => {
                    blocked = false;
                    self.blocked.send_replace(None);
                    self.set_problem(None);
                    self.events.emit(EventKind::Unblocked, &session.host, None);
                }
                Some(Event::Error(error)) => last = Some(error),
                Some(_) => {}
                None => listening = false,
            }
        }
        self.blocked.send_replace(None);
        match last {
            Some(error) => map(&error, "connection"),
            None => Error::new(ErrorKind::Connection, "the connection was lost"),
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let connected = self.shared.sessions.borrow().is_some();
        f.debug_struct("Link").field("role", &self.shared.role).field("connected", &connected).finish_non_exhaustive()
    }
}
