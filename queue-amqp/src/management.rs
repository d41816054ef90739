//! The server's HTTP API, which tells every difference where the protocol tells one.

mod compare;

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use queue_core::{Endpoint, Error, ErrorKind, Result, Secret};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::tls::Tls;

/// The port of the API unless its URL names one.
const DEFAULT_PORTS: (u16, u16) = (15672, 15671);
/// Far more than one queue or its bindings take.
const MAX_ANSWER: usize = 4 << 20;

/// Where the API is.
#[derive(Clone)]
pub(crate) struct Management {
    host: String,
    port: u16,
    /// `None` without TLS.
    tls: Option<Tls>,
    /// In front of `/api`.
    path: String,
    authorization: Secret,
    vhost: String,
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}

impl Management {
    /// Reads the URL; `tls` is that of the connection, and goes for `https` too.
    pub(crate) fn new(url: &Secret, tls: Option<&Tls>, vhost: &str) -> Result<Self> {
        let refuse = |why: &'static str| {
            let error = Error::new(ErrorKind::InvalidConfig, why).with_operation("configure");
            Err(error.with_context("option", "management_url"))
        };
        let Ok(endpoint) = url.expose().parse::<Endpoint>() else {
            return refuse("management_url reads http://user:password@host:port");
        };
        let over_tls = match endpoint.scheme.as_str() {
            "http" => false,
            "https" => true,
            _ => return refuse("management_url is an http or https URL"),
        };
        let ([host], true) = (&*endpoint.hosts, endpoint.options.is_empty() && endpoint.native.is_empty()) else {
            return refuse("management_url names one host and has no options");
        };
        let (Some(user), Some(password)) = (&endpoint.user, &endpoint.password) else {
            return refuse("management_url has a user and a password");
        };
        let login = STANDARD.encode(format!("{user}:{}", password.expose()));
        Ok(Self {
            host: host.name.clone(),
            port: host.port.unwrap_or(if over_tls { DEFAULT_PORTS.1 } else { DEFAULT_PORTS.0 }),
            tls: over_tls.then(|| tls.cloned().unwrap_or_default()),
            path: endpoint.path.as_deref().map(|p| format!("/{}", p.trim_end_matches('/'))).unwrap_or_default(),
            authorization: Secret::from(format!("Basic {login}")),
            vhost: vhost.to_owned(),
        })
    }

    /// What the API says of something in the virtual host; `None` when there is no such thing.
    async fn get(&self, kind: &str, parts: &[&str], deadline: Instant) -> Result<Option<Value>> {
        let mut path = format!("{}/api/{kind}/{}", self.path, encoded(&self.vhost));
        for part in parts {
            path.push('/');
            path.push_str(part);
        }
        let work = async {
            let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
            match &self.tls {
                None => self.exchange(stream, &path).await,
                Some(tls) => {
                    let name = tls.name_of(&self.host).to_owned();
                    let name = ServerName::try_from(name).map_err(failed)?;
                    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(tls.client_config().await?));
                    self.exchange(connector.connect(name, stream).await.map_err(failed)?, &path).await
                }
            }
        };
        let told = match timeout_at(deadline, work).await {
            Ok(told) => told,
            Err(_) => Err(Error::new(ErrorKind::Timeout, "the management API did not answer in time")),
        };
        told.map_err(|e| e.with_operation("verify").with_context("management", format!("{}:{}", self.host, self.port)))
    }

    async fn exchange<S>(&self, stream: S, path: &str) -> Result<Option<Value>>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        let request = Request::get(path)
            .header(HOST, format!("{}:{}", self.host, self.port))
            .header(AUTHORIZATION, self.authorization.expose())
            .body(Empty::<Bytes>::new())
            // The cause could show the login.
            .map_err(|_| Error::new(ErrorKind::InvalidConfig, "the management API cannot be asked that"))?;
        let asked = async {
            let response = sender.send_request(request).await.map_err(failed)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|e| failed(std::io::Error::other(e)))?.to_bytes();
            // Ends the connection.
            drop(sender);
            Ok::<_, Error>((status, body))
        };
        let (answer, _) = tokio::join!(asked, connection);
        let (status, body) = answer?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(Error::new(ErrorKind::Unauthorized, "the management API refuses the login"))
            }
            StatusCode::OK => serde_json::from_slice(&body).map(Some).map_err(|e| {
                Error::new(ErrorKind::Codec, "the management API answers something else than JSON").with_source(e)
            }),
            other => Err(Error::new(ErrorKind::Connection, format!("the management API answers {other}"))),
        }
    }
}

fn encoded(part: &str) -> String {
    utf8_percent_encode(part, NON_ALPHANUMERIC).to_string()
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Connection, "the management API cannot be reached").with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_and_never_shown() {
        let new = |url: &str| Management::new(&Secret::from(url), None, "/");
        let fine = new("http://guest:hunter2@localhost").unwrap();
        assert_eq!((fine.host.as_str(), fine.port, fine.tls.is_some()), ("localhost", 15672, false));
        assert!(!format!("{fine:?}").contains("hunter2") && !format!("{fine:?}").contains("aHVudGVyMg"));
        assert_eq!(new("https://a:b@h:1/rabbit/").unwrap().path, "/rabbit");
        for url in
            ["localhost:15672", "amqp://a:hunter2@h", "http://h", "http://a:hunter2@h,i", "http://a:hunter2@h?x=1"]
        {
            let error = new(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
