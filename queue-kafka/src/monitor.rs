//! What all clients of a connection report: whether the cluster answers, why not, and the client's own log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, EventKind, Events, Health, HealthState};
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use tokio::sync::Notify;

use crate::auth::Login;
use crate::error;
use crate::signal::Signal;

/// Lines of librdkafka's log that pass in a time.
const LOG_LINES: u32 = 20;
const LOG_TIME: Duration = Duration::from_secs(10);

/// What all clients of a connection report to.
#[derive(Debug)]
pub(crate) struct Monitor {
    pub(crate) hosts: Arc<str>,
    pub(crate) login: Login,
    pub(crate) events: Events,
    pub(crate) suspected: AtomicBool,
    /// Until then it is no news that nobody answers.
    pub(crate) connected: AtomicBool,
    /// Whether a poll that returned nothing did something all the same.
    pub(crate) served: AtomicBool,
    pub(crate) stopped: AtomicBool,
    pub(crate) down: Mutex<Option<Error>>,
    /// What no other try will change: a login, a certificate.
    refused: Mutex<Option<Error>>,
    /// Every broker was tried in vain.
    all_down: AtomicBool,
    /// Refused, and by all.
    hopeless: Notify,
    /// Why the last connection failed.
    reason: Mutex<Option<String>>,
    log: Mutex<LogGate>,
    pub(crate) wake: Signal,
}

#[derive(Debug)]
struct LogGate {
    since: Instant,
    lines: u32,
    held_back: u32,
}

impl Monitor {
    pub(crate) fn new(hosts: &str, login: Login, events: Events) -> Arc<Self> {
        Arc::new(Self {
            hosts: hosts.into(),
            login,
            events,
            suspected: AtomicBool::new(false),
            connected: AtomicBool::new(false),
            served: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            down: Mutex::new(None),
            refused: Mutex::new(None),
            all_down: AtomicBool::new(false),
            hopeless: Notify::new(),
            reason: Mutex::new(None),
            log: Mutex::new(LogGate { since: Instant::now(), lines: 0, held_back: 0 }),
            wake: Signal::default(),
        })
    }

    /// A client saw something that may mean that the cluster is away: it is asked soon.
    pub(crate) fn suspect(&self) {
        let connected = self.connected.load(Ordering::Acquire);
        if connected && !self.suspected.swap(true, Ordering::AcqRel) {
            self.wake.raise();
        }
    }

    /// What the cluster said, or did not say, to a question.
    pub(crate) fn heard(&self, answer: Result<(), Error>) {
        let mut down = self.down.lock();
        match answer {
            Ok(()) => {
                *self.refused.lock() = None;
                self.all_down.store(false, Ordering::Release);
                if down.take().is_some() {
                    self.events.emit(EventKind::Connected, &self.hosts, None);
                }
            }
            Err(error) => {
                let error = self.instead_of(error);
                let first = down.is_none();
                *down = Some(error.clone());
                if first {
                    self.events.emit(EventKind::Disconnected, &self.hosts, Some(error));
                }
            }
        }
    }

    /// The refusal behind an error that only says that nothing came of it.
    pub(crate) fn instead_of(&self, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::Connection | ErrorKind::Timeout) {
            return error;
        }
        match &*self.refused.lock() {
            Some(refused) => refused.clone().with_operation(error.operation()),
            None => error,
        }
    }

    pub(crate) fn health(&self) -> Health {
        let health = match &*self.down.lock() {
            Some(error) => Health::up()
                .with_problem(HealthState::Down, format!("Kafka at {} does not answer: {error}", self.hosts)),
            None => Health::up(),
        };
        match &self.login {
            Login::Tokens(tokens) => match tokens.problem() {
                Some(error) => {
                    health.with_problem(HealthState::Degraded, format!("the token cannot be renewed: {error}"))
                }
                None => health,
            },
            _ => health,
        }
    }

    fn report(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else { return };
        if let Some(refused) = error::of_refusal(code, &self.login.hide(reason)) {
            let refused = match self.login.user() {
                Some(user) => refused.with_context("user", user),
                None => refused,
            };
            if let (Login::Tokens(tokens), true) = (&self.login, error::is_login(code)) {
                tokens.refused();
            }
            *self.refused.lock() = Some(refused);
            self.suspect();
        }
        match code {
            Code::AllBrokersDown => {
                self.all_down.store(true, Ordering::Release);
                self.suspect();
            }
            Code::BrokerTransportFailure | Code::Resolve => {
                *self.reason.lock() = Some(self.login.hide(reason));
                self.suspect();
            }
            Code::OperationTimedOut | Code::RequestTimedOut => self.suspect(),
            _ => {}
        }
        if self.is_hopeless() {
            self.hopeless.notify_one();
        }
    }

    /// The error of a cluster that could not be connected to.
    pub(crate) fn unreachable(&self, error: Error) -> Error {
        if let Some(refused) = &*self.refused.lock() {
            return refused.clone().with_context("hosts", &self.hosts);
        }
        let unreachable = Error::new(ErrorKind::Connection, "no broker answers")
            .with_operation("connect")
            .with_context("hosts", &self.hosts)
            .with_source(error);
        let Some(reason) = self.reason.lock().take() else { return unreachable };
        let advice = advice(&reason);
        let unreachable = unreachable.with_context("reason", reason);
        match advice {
            Some(advice) => unreachable.with_context("advice", advice),
            None => unreachable,
        }
    }

    pub(crate) fn is_hopeless(&self) -> bool {
        self.all_down.load(Ordering::Acquire) && self.refused.lock().is_some()
    }

    /// Waits until all brokers refuse.
    pub(crate) async fn refusal(&self) -> Error {
        loop {
            if self.all_down.load(Ordering::Acquire)
                && let Some(refused) = &*self.refused.lock()
            {
                return refused.clone();
            }
            self.hopeless.notified().await;
        }
    }

    pub(crate) fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        let held_back = {
            let mut gate = self.log.lock();
            if gate.since.elapsed() > LOG_TIME {
                *gate = LogGate { since: Instant::now(), lines: 0, held_back: gate.held_back };
            }
            if !matches!(level, RDKafkaLogLevel::Debug) {
                gate.lines += 1;
                if gate.lines > LOG_LINES {
                    gate.held_back += 1;
                    return;
                }
            }
            std::mem::take(&mut gate.held_back)
        };
        let line = &*self.login.hide(line);
        if facility == "FAIL" && !self.connected.load(Ordering::Acquire) {
            // Behind the name of the thread.
            *self.reason.lock() = Some(line.split_once("]: ").map_or(line, |(_, reason)| reason).to_owned());
        }
        if held_back > 0 {
            tracing::warn!(target: "librdkafka", held_back, "more lines of the log than are shown");
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::error!(target: "librdkafka", facility, "{line}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", facility, "{line}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
                tracing::info!(target: "librdkafka", facility, "{line}");
            }
            RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", facility, "{line}"),
        }
    }
}

/// The context of every client: passes logs and errors on to the monitor.
#[derive(Debug, Clone)]
pub(crate) struct Watch(pub(crate) Arc<Monitor>);

impl Watch {
    /// Whether a login that was refused may be taken later without anybody's help.
    pub(crate) fn renews_login(&self) -> bool {
        matches!(self.0.login, Login::Tokens(_))
    }
}

impl ClientContext for Watch {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.0.served.store(true, Ordering::Release);
        match &self.0.login {
            Login::Tokens(tokens) => tokens.take().map_err(Into::into),
            _ => Err("there is no token".into()),
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, line: &str) {
        self.0.served.store(true, Ordering::Release);
        self.0.log(level, facility, line);
    }

    fn stats_raw(&self, _: &[u8]) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.served.store(true, Ordering::Release);
        self.0.report(&error, reason);
    }
}

impl ConsumerContext for Watch {}

/// Of a broker that hung up in the middle of the first exchange: one side speaks TLS there and the other does not.
fn advice(reason: &str) -> Option<&'static str> {
    if !reason.contains("ssl://") && reason.contains("in state APIVERSION_QUERY") {
        Some("the broker may want TLS: kafkas://")
    } else if reason.contains("in state SSL_HANDSHAKE") && reason.contains("Disconnected") {
        Some("the port may be without TLS (PLAINTEXT): kafka://")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tracing::{Metadata, Subscriber, span};

    use super::*;
    use crate::auth::Auth;

    /// Counts events, by whether they show the secret.
    struct Counter {
        all: Arc<AtomicU32>,
        secret: Arc<AtomicU32>,
    }

    impl Subscriber for Counter {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &tracing::Event<'_>) {
            self.all.fetch_add(1, Ordering::Relaxed);
            if format!("{event:?}").contains("hunter2") {
                self.secret.fetch_add(1, Ordering::Relaxed);
            }
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_flood_of_log_lines_is_held_back_and_shows_no_secret() {
        let login = Login::Password { auth: Auth::Plain, user: "me".to_owned(), password: "hunter2".into() };
        let monitor = Monitor::new("a:1", login, Events::new());
        let (all, secret) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let counter = Counter { all: all.clone(), secret: secret.clone() };
        tracing::subscriber::with_default(counter, || {
            // What was asked for passes, and takes nobody's place.
            for _ in 0..LOG_LINES {
                monitor.log(RDKafkaLogLevel::Debug, "SECURITY", "hunter2");
            }
            assert_eq!(all.swap(0, Ordering::Relaxed), LOG_LINES);
            for _ in 0..1000 {
                Watch(monitor.clone()).log(RDKafkaLogLevel::Error, "FAIL", "refused: hunter2");
            }
            assert_eq!(all.load(Ordering::Relaxed), LOG_LINES);
            // Later they pass again, and it is told how many were held back.
            monitor.log.lock().since = Instant::now().checked_sub(LOG_TIME * 2).unwrap();
            monitor.log(RDKafkaLogLevel::Error, "FAIL", "refused: hunter2");
            assert_eq!(all.load(Ordering::Relaxed), LOG_LINES + 2);
            assert_eq!(monitor.log.lock().held_back, 0);
        });
        assert_eq!(secret.load(Ordering::Relaxed), 0);
    }

    /// In the words of librdkafka 2.12.
    #[test]
    fn the_wrong_scheme_is_guessed_from_how_it_fails() {
        for (reason, says) in [
            (
                "a:1/bootstrap: Disconnected while requesting ApiVersion (after 2ms in state APIVERSION_QUERY)",
                Some("kafkas://"),
            ),
            (
                "ssl://a:1/bootstrap: Disconnected: SSL connection closed by peer (after 1ms in state SSL_HANDSHAKE)",
                Some("kafka://"),
            ),
            ("ssl://a:1/bootstrap: SSL handshake failed: certificate verify failed (in state SSL_HANDSHAKE)", None),
            ("a:1/bootstrap: Connection refused (after 0ms in state CONNECT)", None),
        ] {
            let advice = advice(reason);
            assert_eq!(advice.is_some(), says.is_some(), "{reason}");
            assert!(advice.is_none_or(|advice| advice.ends_with(says.unwrap())), "{reason}: {advice:?}");
        }
    }

    #[test]
    fn an_error_shows_the_reason_without_the_secret() {
        let login = Login::Password { auth: Auth::Plain, user: "me".to_owned(), password: "hunter2".into() };
        let monitor = Monitor::new("a:1", login, Events::new());
        let refused = KafkaError::Global(rdkafka::types::RDKafkaErrorCode::Authentication);
        Watch(monitor.clone()).error(refused, "who is hunter2?");
        monitor.heard(Err(Error::new(ErrorKind::Timeout, "no answer")));
        let health = monitor.health();
        assert_eq!(health.state, HealthState::Down);
        let shown = format!("{health:?}");
        assert!(shown.contains("who is ***?") && shown.contains("user: me"), "{shown}");
        assert!(!shown.contains("hunter2"));
        monitor.heard(Ok(()));
        assert!(monitor.health().is_up());
    }
}
