//! Tokens that expire, and where new ones come from.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use queue_core::{Error, ErrorKind, Result, Secret, TokenProvider, files};
use rdkafka::client::OAuthToken;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// How often librdkafka takes the last token again, and a file is read. It looks once a second whether it is time, which
/// makes it one to two seconds.
const TAKE_AGAIN: Duration = Duration::from_secs(1);
/// Shortest time between two questions for a token that fail or are made before its time; doubled while they do.
const MIN_RENEWAL: Duration = Duration::from_millis(500);
/// Longest time between two questions that fail.
const MAX_RENEWAL: Duration = Duration::from_secs(5);

pub(crate) enum TokenSource {
    Provider(Arc<dyn TokenProvider>),
    File(PathBuf),
    Fixed(Secret),
}

/// The token of a connection, from its source.
pub(crate) struct Tokens {
    source: TokenSource,
    user: Option<String>,
    last: Mutex<Option<Secret>>,
    /// Why there is no newer one.
    problem: Mutex<Option<Error>>,
    /// A broker refused the last one.
    refused: Arc<Notify>,
    renewal: Mutex<Option<AbortHandle>>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(***)")
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Tokens {
    pub(crate) fn new(source: TokenSource, user: Option<String>) -> Arc<Self> {
        Arc::new(Self {
            source,
            user,
            last: Mutex::default(),
            problem: Mutex::default(),
            refused: Arc::default(),
            renewal: Mutex::default(),
        })
    }

    pub(crate) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    pub(crate) fn last(&self) -> Option<Secret> {
        self.last.lock().clone()
    }

    pub(crate) fn problem(&self) -> Option<Error> {
        self.problem.lock().clone()
    }

    /// A broker refused the last one: it is time for another.
    pub(crate) fn refused(&self) {
        self.refused.notify_one();
    }

    /// Gets the first token, and renews it from then on until [`stop`](Self::stop).
    pub(crate) async fn start(self: &Arc<Self>, within: Duration, later: Duration) -> Result<()> {
        let late = || Error::new(ErrorKind::Timeout, "no token came in time").with_operation("connect");
        let renew_in = timeout(within, self.fetch()).await.unwrap_or_else(|_| Err(late()))?;
        if matches!(self.source, TokenSource::Provider(_)) {
            let task = tokio::spawn(renew(Arc::downgrade(self), self.refused.clone(), renew_in, later));
            *self.renewal.lock() = Some(task.abort_handle());
        }
        Ok(())
    }

    pub(crate) fn stop(&self) {
        if let Some(task) = self.renewal.lock().take() {
            task.abort();
        }
    }

    /// Gets a token from the source, and says when to get the next.
    async fn fetch(&self) -> Result<Option<Duration>> {
        let (token, renew_in) = match &self.source {
            TokenSource::Provider(provider) => {
                let token = provider.token().await?;
                (token.secret().clone(), token.renew_in())
            }
            TokenSource::File(path) => (files::secret(path)?, None),
            TokenSource::Fixed(token) => (token.clone(), None),
        };
        if !sendable(&token) {
            // librdkafka would show it in its error.
            return Err(match &self.source {
                TokenSource::File(path) => files::bad(path, NOT_SENDABLE),
                _ => Error::new(ErrorKind::InvalidConfig, NOT_SENDABLE).with_operation("connect"),
            });
        }
        *self.last.lock() = Some(token);
        Ok(renew_in)
    }

    /// What librdkafka logs in with from now on; called on its threads.
    pub(crate) fn take(&self) -> Result<OAuthToken> {
        if let TokenSource::File(path) = &self.source {
            let read = files::secret(path)
                .and_then(|token| if sendable(&token) { Ok(token) } else { Err(files::bad(path, NOT_SENDABLE)) });
            match read {
                Ok(token) => {
                    *self.last.lock() = Some(token);
                    self.tell(None);
                }
                Err(error) => self.tell(Some(error)),
            }
        }
        let Some(token) = self.last() else {
            return Err(Error::new(ErrorKind::Unauthorized, "there is no token yet"));
        };
        // It is for the brokers to say that a token is too old. What is given here is when to ask again: librdkafka does so
        // when four fifths of the time are over.
        let until = (SystemTime::now() + TAKE_AGAIN.mul_f64(1.25)).duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(OAuthToken {
            token: token.expose().to_owned(),
            // Brokers take the name from the token; librdkafka wants one.
            principal_name: self.user.clone().unwrap_or_else(|| "anyqueue".to_owned()),
            lifetime_ms: i64::try_from(until.as_millis()).unwrap_or(i64::MAX),
        })
    }

    /// Keeps what hinders it, and logs that once.
    fn tell(&self, problem: Option<Error>) {
        let mut known = self.problem.lock();
        if let (None, Some(error)) = (&*known, &problem) {
            tracing::warn!(%error, "the token cannot be renewed");
        }
        *known = problem;
    }
}

const NOT_SENDABLE: &str = "a token has visible ASCII characters only";

/// What the protocol can carry.
fn sendable(token: &Secret) -> bool {
    !token.is_empty() && token.expose().bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

/// Gets a new token in time, when a broker refuses the last one, and again while that fails.
async fn renew(tokens: Weak<Tokens>, refused: Arc<Notify>, first: Option<Duration>, within: Duration) {
    let (mut next, mut pause) = (first, MIN_RENEWAL);
    loop {
        let in_time = match next {
            Some(time) => timeout(time, refused.notified()).await.is_err(),
            None => {
                refused.notified().await;
                false
            }
        };
        // Neither a broker that refuses all tokens nor a source that fails is hammered.
        sleep(pause).await;
        let Some(tokens) = tokens.upgrade() else { return };
        let late = || Error::new(ErrorKind::Timeout, "no token came in time");
        match timeout(within, tokens.fetch()).await.unwrap_or_else(|_| Err(late())) {
            Ok(renew_in) => {
                tokens.tell(None);
                next = renew_in;
                pause = if in_time { MIN_RENEWAL } else { (pause * 2).min(MAX_RENEWAL) };
            }
            Err(error) => {
                tokens.tell(Some(error));
                next = Some(Duration::ZERO);
                pause = (pause * 2).min(MAX_RENEWAL);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_that_cannot_be_sent_is_refused_and_not_shown() {
        for token in ["", "hunter2\0", "hunter2\n", "hünter2"] {
            let tokens = Tokens::new(TokenSource::Fixed(token.into()), None);
            let error = tokens.start(Duration::from_secs(1), Duration::from_secs(1)).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{token:?}");
            assert!(!format!("{error} {error:?}").contains("nter2"), "{error:?}");
            assert!(tokens.take().is_err());
        }
    }
}
