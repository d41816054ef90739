//! One connection that comes back by itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::pending;
use futures::{FutureExt, Stream, StreamExt};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, EventKind, Events, HealthState, Result};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

use crate::auth::Credentials;
use crate::config::{AmqpConfig, Target};
use crate::dial::{Dialed, Line, dial, share};
use crate::error::{map, not_connected, within};
use crate::server::ServerInfo;
use crate::turns::Cork;

/// First wait before a reconnect; doubled up to the configured maximum.
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// How often the state is looked at, for losses that the client reports by no event.
const LOOK: Duration = Duration::from_millis(500);
/// Wait before a token that could not be renewed is asked for again.
const RENEW_AGAIN: Duration = Duration::from_secs(1);

/// A connection from its handshake to its loss.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    /// What the server says about itself.
    pub(crate) server: ServerInfo,
    /// Held while the connection is given many messages.
    pub(crate) cork: Cork,
    /// The host, without login.
    host: String,
    line: Line,
    credentials: Credentials,
    /// How many numbers of channels the client refuses.
    refused: AtomicUsize,
}

impl Session {
    /// Opens a channel; `None` when too few are left for errors of earlier ones, and the connection is ended for that.
    ///
    /// The client refuses the number of a channel that the server closed for an error for as long as the connection
    /// lasts, with the error of then, and goes on to the next number with each call.
    pub(crate) async fn channel(&self, deadline: Instant) -> Result<Option<Channel>> {
        loop {
            let opened = timeout_at(deadline, self.connection.create_channel()).await;
            match opened.map(|opened| opened.map_err(|e| (map(&e, "open channel"), e))) {
                Ok(Ok(channel)) => return Ok(Some(channel)),
                Ok(Err((_, error))) if matches!(error.kind(), lapin::ErrorKind::ChannelsLimitReached) => {
                    return self.no_channel_left();
                }
                // Nobody is refused a channel alone: this is of another time.
                Ok(Err((_, error)))
                    if matches!(error.kind(), lapin::ErrorKind::ProtocolError(_))
                        && self.connection.status().connected() =>
                {
                    // The client keeps the number, so it is counted once.
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                Ok(Err((error, _))) => return Err(error),
                Err(_) => {
                    let error = Error::new(ErrorKind::Timeout, "the broker did not answer in time");
                    return Err(error.with_operation("open channel"));
                }
            }
        }
    }

    fn no_channel_left(&self) -> Result<Option<Channel>> {
        let limit = usize::from(self.connection.configuration().channel_max());
        if self.refused.load(Ordering::Relaxed) >= limit.div_ceil(2) {
            tracing::warn!(host = self.host, "the connection has no channels left, and is made anew");
            self.line.hang_up();
            return Ok(None);
        }
        // In use: another connection would have no more, and those who use them would lose theirs.
        let error = Error::new(ErrorKind::Throttled, "no channel is left on the connection: each receiver takes one");
        Err(error.with_operation("open channel").with_context("limit", limit))
    }
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
    blocked: watch::Sender<Option<Arc<str>>>,
    problem: Mutex<Option<Problem>>,
    /// That a token could not be renewed, while the connection still lasts.
    stale: Mutex<Option<Problem>>,
}

type Problem = (HealthState, String);

/// The session of now, and each that follows.
pub(crate) type Sessions = watch::Receiver<Option<Arc<Session>>>;

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
            stale: Mutex::new(None),
        });
        let session = shared.connect(0, deadline).await?;
        let listener = session.connection.events_listener();
        shared.up(&session);
        let supervisor = Task(tokio::spawn(shared.clone().supervise(session, Box::pin(listener))));
        Ok(Self { shared, supervisor: Mutex::new(Some(supervisor)) })
    }

    /// The options of the connection.
    pub(crate) fn config(&self) -> &AmqpConfig {
        &self.shared.target.config
    }

    /// Present and later sessions; `None` while disconnected.
    pub(crate) fn sessions(&self) -> Sessions {
        self.shared.sessions.subscribe()
    }

    /// Why the broker takes no messages, from now on.
    pub(crate) fn blocked(&self) -> Blocked {
        self.shared.blocked.subscribe()
    }

    /// A further connection, which is closed when it is dropped, for what may cost the connection.
    pub(crate) async fn another(&self, deadline: Instant) -> Result<Arc<Session>> {
        self.shared.connect(0, deadline).await
    }

    /// What the server says about itself; nothing while disconnected.
    pub(crate) fn server(&self) -> ServerInfo {
        self.shared.sessions.borrow().as_ref().map(|session| session.server.clone()).unwrap_or_default()
    }

    /// Opens a channel, on a connection that is awaited until the deadline.
    pub(crate) async fn channel(&self, deadline: Instant) -> Result<Channel> {
        open_channel(&mut self.sessions(), deadline).await
    }

    /// What is wrong now.
    pub(crate) fn problems(&self) -> impl Iterator<Item = (HealthState, String)> + use<> {
        let problems = [self.shared.problem.lock().clone(), self.shared.stale.lock().clone()];
        problems.into_iter().flatten()
    }

    /// Closes the connection and stops reconnecting.
    pub(crate) async fn close(&self, deadline: Instant) -> Result<()> {
        drop(self.supervisor.lock().take());
        let session = self.shared.sessions.send_replace(None);
        self.shared.set_problem(None);
        self.shared.set_stale(None);
        let Some(session) = session else { return Ok(()) };
        let mut closed = Ok(());
        if session.connection.status().connected() {
            let close = within(deadline, "close", session.connection.close(200, "OK".into()));
            closed = tokio::select! {
                closed = close => closed,
                () = over(&session.connection) => Ok(()),
            };
        }
        session.line.hang_up();
        match closed {
            // It is gone, which is what was wanted; what was lost with it was told by whoever had it. The client itself fails
            // the connection when it closes while a channel is opened, or dropped.
            Err(error) if error.kind() != ErrorKind::Timeout => {
                tracing::debug!(%error, "the connection broke while it was closed");
                Ok(())
            }
            closed => closed,
        }
    }
}

/// Resolves soon after the connection has ended: whoever closes it at the moment when it breaks is sometimes never answered.
async fn over(connection: &Connection) {
    let status = connection.status();
    while status.connected() || status.closing() {
        sleep(LOOK).await;
    }
}

/// Closes a channel without waiting for it.
///
/// Dropping it and its subscription would not do. A subscription that the client still waits for keeps the channel
/// open. One that it has is cancelled on the way: at the same time as the channel is closed, which can be too late, and
/// a server that deletes the queue at that moment may confirm it twice. Both cost the client its connection.
pub(crate) fn hang_up(channel: &Channel) {
    if channel.status().connected() {
        // With the client when the first poll returns.
        let _ = channel.close(200, "OK".into()).now_or_never();
    }
}

/// Opens a channel, on a connection that is awaited until the deadline.
pub(crate) async fn open_channel(sessions: &mut Sessions, deadline: Instant) -> Result<Channel> {
    loop {
        let session = match timeout_at(deadline, sessions.wait_for(Option::is_some)).await {
            Ok(Ok(session)) => session.clone(),
            Ok(Err(_)) => return Err(Error::closed("broker")),
            Err(_) => None,
        };
        let Some(session) = session else { return Err(not_connected()) };
        if session.connection.status().connected() {
            match while_up(sessions, session.channel(deadline)).await {
                Ok(Some(channel)) => return Ok(channel),
                Ok(None) => {}
                // Another session is about to be there.
                Err(_) if sessions.has_changed().unwrap_or(false) => {}
                Err(error) => return Err(error),
            }
        }
        // Lost, and the supervisor is about to say so.
        match timeout_at(deadline, sessions.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err(Error::closed("broker")),
            Err(_) => return Err(not_connected()),
        }
    }
}

/// Does what needs the session that was seen last, for no longer than it lasts: what the client is asked at the moment
/// when a connection goes is sometimes never answered.
pub(crate) async fn while_up<T>(sessions: &Sessions, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut sessions = sessions.clone();
    tokio::select! {
        biased;
        done = work => done,
        _ = sessions.changed() => Err(Error::new(ErrorKind::Connection, "the connection was lost before the answer")),
    }
}

impl Shared {
    /// Connects to the first host that answers, beginning with the one at `start`.
    async fn connect(&self, start: usize, deadline: Instant) -> Result<Arc<Session>> {
        let hosts = &self.target.hosts;
        let credentials = match timeout_at(deadline, self.target.login.credentials()).await {
            Ok(credentials) => credentials?,
            Err(_) => return Err(Error::new(ErrorKind::Timeout, "no token in time").with_operation("connect")),
        };
        let mut failure = not_connected();
        for tried in 0..hosts.len() {
            let (name, port) = &hosts[(start + tried) % hosts.len()];
            let host = if name.contains(':') { format!("[{name}]:{port}") } else { format!("{name}:{port}") };
            // A host that swallows packets leaves time for the others.
            let until = share(deadline, hosts.len() - tried);
            match dial(&self.target, (name, *port), &credentials, self.properties(), until).await {
                Ok(Dialed { connection, server, cork, line }) => {
                    return Ok(Arc::new(Session {
                        connection,
                        server,
                        cork,
                        host,
                        line,
                        credentials,
                        refused: AtomicUsize::new(0),
                    }));
                }
                Err(error) => failure = error.with_context("host", &host),
            }
            // The server was reached and said no: the others will say the same.
            if matches!(failure.kind(), ErrorKind::Unauthorized | ErrorKind::NotFound) {
                return Err(match self.target.login.user() {
                    "" => failure,
                    user => failure.with_context("user", user),
                });
            }
        }
        Err(failure)
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

    fn set_problem(&self, problem: Option<Problem>) {
        self.events.set_problem(&format!("amqp {} connection", self.role), problem.clone());
        *self.problem.lock() = problem;
    }

    fn set_stale(&self, stale: Option<Problem>) {
        self.events.set_problem(&format!("amqp {} token", self.role), stale.clone());
        *self.stale.lock() = stale;
    }

    async fn supervise(
        self: Arc<Self>,
        mut session: Arc<Session>,
        mut listener: std::pin::Pin<Box<dyn Stream<Item = Event> + Send>>,
    ) {
        let mut attempt = 0_usize;
        loop {
            let error = tokio::select! {
                error = self.lost(&session, &mut listener) => error.with_context("host", &session.host),
                never = self.renew(&session) => match never {},
            };
            session.line.hang_up();
            self.set_stale(None);
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
                        if error.kind() == ErrorKind::Unauthorized {
                            // Every refused login costs the server, and may lock the account.
                            backoff = self.target.config.max_backoff;
                        }
                        self.set_problem(Some((HealthState::Down, format!("{} connection: {error}", self.role))));
                    }
                }
            };
            listener = Box::pin(session.connection.events_listener());
            self.up(&session);
        }
    }

    /// Gives the server new tokens before the old ones expire, for as long as it is polled.
    async fn renew(&self, session: &Session) -> Infallible {
        let mut current = session.credentials.clone();
        loop {
            let Some(wait) = current.renew_in else { return pending().await };
            sleep(wait).await;
            match self.renew_once(session, &current).await {
                Ok(renewed) => {
                    current = renewed;
                    self.set_stale(None);
                }
                Err(error) => {
                    tracing::debug!(%error, "renewing the token failed");
                    let text = format!("{} connection: the token was not renewed: {error}", self.role);
                    self.set_stale(Some((HealthState::Degraded, text)));
                    current.renew_in = Some(RENEW_AGAIN);
                }
            }
        }
    }

    async fn renew_once(&self, session: &Session, current: &Credentials) -> Result<Credentials> {
        let deadline = Instant::now() + self.target.config.operation_timeout;
        let renewed = match timeout_at(deadline, self.target.login.credentials()).await {
            Ok(renewed) => renewed?,
            Err(_) => return Err(Error::new(ErrorKind::Timeout, "no token in time").with_operation("renew token")),
        };
        if let Some((_, secret)) = &renewed.login
            && renewed.login != current.login
        {
            let update = session.connection.update_secret(secret.expose().into(), "renewed".into());
            within(deadline, "renew token", update).await?;
        }
        Ok(renewed)
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
        // The reason may come with the loss.
        while let Some(Some(event)) = listener.next().now_or_never() {
            if let Event::Error(error) = event {
                last = Some(error);
            }
        }
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
