//! Tokens to log in with.

use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::secret::Secret;

/// A token is renewed when this part of its life is over.
const RENEW_AT: f64 = 0.75;
/// Shortest time between two questions for a token.
const MIN_RENEWAL: Duration = Duration::from_millis(500);

/// A token of OAuth 2, and how long it is good for.
///
/// ```
/// use std::time::Duration;
/// use queue_core::Token;
///
/// let token = Token::new("eyJhbGciOi…").valid_for(Duration::from_secs(300));
/// assert_eq!(format!("{token:?}"), "Token { secret: ***, valid_for: Some(300s) }");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    secret: Secret,
    valid_for: Option<Duration>,
}

impl Token {
    /// Makes a token that never expires; see [`valid_for`](Self::valid_for).
    #[must_use]
    pub fn new(secret: impl Into<Secret>) -> Self {
        Self { secret: secret.into(), valid_for: None }
    }

    /// Says how long the token is good for from now on: `expires_in` of a token server's answer. Three quarters of it
    /// later the next one is asked for.
    #[must_use]
    pub fn valid_for(mut self, time: Duration) -> Self {
        self.valid_for = Some(time);
        self
    }

    /// The token itself.
    #[must_use]
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// When to ask for the next one: after three quarters of its life, and no sooner than in half a second. `None` where
    /// it never expires.
    #[must_use]
    pub fn renew_in(&self) -> Option<Duration> {
        self.valid_for.map(|time| time.mul_f64(RENEW_AT).max(MIN_RENEWAL))
    }
}

/// Gives tokens of OAuth 2, for adapters that log in with them. One provider serves every broker.
///
/// Asked when a connection is made, before a token expires, and when a broker refuses one; how often, the adapter's page
/// says. A provider for which a token is expensive keeps it.
#[async_trait]
pub trait TokenProvider: Send + Sync + 'static {
    /// Gives a token that is good now.
    ///
    /// The wait is bounded: by `connect_timeout` or the time between reconnects while connecting, by the adapter's timeout
    /// of one operation while connected. The future is dropped then, and the provider asked again later.
    ///
    /// # Errors
    /// Whatever hinders it; shown in `health()`. Never put the token into it.
    async fn token(&self) -> Result<Token>;

    /// Whether the token must not be sent without TLS; adapters refuse to connect otherwise. Default: false, for brokers in
    /// a network of their own.
    fn needs_tls(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_in_time_and_not_all_the_time() {
        let renew_in = |secs| Token::new("t").valid_for(Duration::from_secs(secs)).renew_in();
        assert_eq!(renew_in(400), Some(Duration::from_secs(300)));
        assert_eq!(renew_in(0), Some(MIN_RENEWAL));
        assert_eq!(Token::new("t").renew_in(), None);
    }
}
