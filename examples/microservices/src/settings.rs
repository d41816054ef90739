//! Settings, out of the environment.

use std::env::VarError;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use axum::http::Uri;

/// An argument or a setting that is not acceptable: the program ends with the code 2.
#[derive(Debug)]
pub(crate) struct Invalid(pub(crate) String);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Invalid {}

/// The URL of the broker, of which nothing is printed: it may contain a password.
pub(crate) fn queue_url() -> Result<String, Invalid> {
    let url = setting("QUEUE_URL", "")?;
    if url.is_empty() {
        let why = "QUEUE_URL says which broker the services talk through: amqp://guest:guest@localhost:5672, kafka://… or sqs://…";
        return Err(Invalid(why.to_owned()));
    }
    if url.to_ascii_lowercase().starts_with("memory:") {
        let why = "the memory broker is that of one process, and each service is one of its own: QUEUE_URL takes amqp://…, kafka://… or sqs://…";
        return Err(Invalid(why.to_owned()));
    }
    Ok(url)
}

pub(crate) fn listen(default: &str) -> Result<SocketAddr, Invalid> {
    let address = setting("LISTEN", default)?;
    address.parse().map_err(|_| Invalid(format!("LISTEN takes an address with a port, as {default}, not '{address}'")))
}

/// The file of the database.
pub(crate) fn database(default: &str) -> Result<String, Invalid> {
    let file = setting("DATABASE", default)?;
    if file.is_empty() { Err(Invalid(format!("DATABASE takes a file, as {default}"))) } else { Ok(file) }
}

/// Where a service is, for the proxy.
pub(crate) fn base(name: &str, default: &str) -> Result<Uri, Invalid> {
    let text = setting(name, default)?;
    let is_base = |uri: &Uri| {
        let is_address = uri.scheme_str() == Some("http") && uri.authority().is_some();
        is_address && uri.path() == "/" && uri.query().is_none()
    };
    let wrong = || Invalid(format!("{name} takes a URL without a path, as {default}, not '{text}'"));
    text.parse().ok().filter(is_base).ok_or_else(wrong)
}

/// How long a service may take to answer the proxy.
pub(crate) fn timeout() -> Result<Duration, Invalid> {
    let seconds = setting("TIMEOUT", "30")?;
    let wrong = || Invalid(format!("TIMEOUT takes seconds from 1 to 3600, not '{seconds}'"));
    let seconds = seconds.parse().ok().filter(|seconds| (1..=3600).contains(seconds)).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

fn setting(name: &str, default: &str) -> Result<String, Invalid> {
    match std::env::var(name) {
        Ok(value) => Ok(value),
        Err(VarError::NotPresent) => Ok(default.to_owned()),
        Err(VarError::NotUnicode(_)) => Err(Invalid(format!("{name} is no text"))),
    }
}
