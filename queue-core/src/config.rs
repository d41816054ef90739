//! Endpoints and options: the one strict path from text to configuration.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde::de::{self, DeserializeOwned, Deserializer, Visitor};
use serde::forward_to_deserialize_any;

use crate::broker::Options;
use crate::error::{Error, ErrorKind, Result};
use crate::secret::Secret;

/// One host of a broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name or address; an IPv6 address without brackets.
    pub name: String,
    /// The port, if one was given.
    pub port: Option<u16>,
}

impl Host {
    /// `name:port`, with the default for a missing port and brackets around an IPv6 address.
    #[must_use]
    pub fn with_default_port(&self, default: u16) -> String {
        let port = self.port.unwrap_or(default);
        if self.name.contains(':') { format!("[{}]:{port}", self.name) } else { format!("{}:{port}", self.name) }
    }
}

/// Where a broker is and how to connect: a URL, taken apart.
///
/// `scheme://user:password@host:port,host:port/path?option=value`. User, password, path and options are
/// percent-decoded; the path keeps no leading slash and is `None` where the URL has none.
///
/// ```
/// use queue_core::Endpoint;
///
/// let endpoint: Endpoint = "amqp://guest:hunter2@a:5672,[::1]/%2f?heartbeat=10".parse()?;
/// assert_eq!(endpoint.hosts.len(), 2);
/// assert_eq!(endpoint.path.as_deref(), Some("/"));
/// assert_eq!(endpoint.to_string(), "amqp://guest:***@a:5672,[::1]/%2F");
/// # Ok::<(), queue_core::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Endpoint {
    /// The scheme.
    pub scheme: String,
    /// The user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Secret>,
    /// The hosts; empty where the URL names none.
    pub hosts: Vec<Host>,
    /// The path behind the hosts.
    pub path: Option<String>,
    /// Options of the driver; those of the handles have been taken out when a driver sees this.
    pub options: Options,
    /// The broker's own options, from keys that start with the scheme and a dot (`kafka.linger.ms`), without that
    /// prefix. A scheme with TLS is called as without (`amqp.x-queue-type` for `amqps` too).
    pub native: Options,
    /// How long connecting may take in all. Default: 10 s.
    pub connect_timeout: Duration,
}

/// How long connecting may take unless configured.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

impl std::str::FromStr for Endpoint {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        // The URL itself never goes into an error: it may hold a password.
        let bad = |why: &'static str| Error::new(ErrorKind::InvalidConfig, why).with_operation("parse URL");
        let (scheme, rest) =
            url.split_once("://").ok_or_else(|| bad("a URL reads scheme://host:port/path?option=value"))?;
        if scheme.is_empty() || !scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c)) {
            return Err(bad("a scheme has letters, digits and +-. only"));
        }
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, Some(path).filter(|p| !p.is_empty())),
            None => (rest, None),
        };
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, authority),
        };
        let (user, password) = match login.map(|l| l.split_once(':').map_or((l, None), |(u, p)| (u, Some(p)))) {
            Some((user, password)) => {
                let password = password.map(decoded).transpose()?.map(|p| Secret::from(p.into_owned()));
                (Some(decoded(user)?.into_owned()).filter(|u| !u.is_empty()), password)
            }
            None => (None, None),
        };
        let hosts = hosts.split(',').filter(|h| !h.is_empty()).map(parse_host).collect::<Result<Vec<_>>>();
        // With a login that was not encoded, what looks like a host may be a password.
        let hosts = hosts.map_err(|error| {
            if url.contains('@') { bad("user and password are percent-encoded, hosts read name:port") } else { error }
        })?;
        let mut endpoint = Self {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            hosts,
            path: path.map(decoded).transpose()?.map(Cow::into_owned),
            options: Options::new(),
            native: Options::new(),
            connect_timeout: CONNECT_TIMEOUT,
        };
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            if endpoint.options.insert(key.clone().into_owned(), value.into_owned()).is_some() {
                return Err(bad("an option is given twice").with_context("option", key));
            }
        }
        endpoint.split_native();
        Ok(endpoint)
    }
}

fn decoded(text: &str) -> Result<Cow<'_, str>> {
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| Error::new(ErrorKind::InvalidConfig, "percent-encoded text is UTF-8").with_operation("parse URL"))
}

fn parse_host(text: &str) -> Result<Host> {
    let bad = |why| {
        Error::new(ErrorKind::InvalidConfig, why).with_operation("parse URL").with_context("host", format!("{text:?}"))
    };
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let (name, tail) = rest.split_once(']').ok_or_else(|| bad("an IPv6 address stands in brackets"))?;
        match tail.strip_prefix(':') {
            Some(port) => (name, Some(port)),
            None if tail.is_empty() => (name, None),
            None => return Err(bad("behind a host stands a colon and a port")),
        }
    } else {
        match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        }
    };
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(bad("a host has a name"));
    }
    let port = port
        .map(|p| p.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(|| bad("a port is a number from 1 to 65535")))
        .transpose()?;
    Ok(Host { name: name.to_owned(), port })
}

impl Endpoint {
    /// Moves options that start with the scheme and a dot to `native`.
    pub(crate) fn split_native(&mut self) {
        let prefix = format!("{}.", family(&self.scheme));
        let (native, own) =
            std::mem::take(&mut self.options).into_iter().partition(|(key, _)| key.starts_with(&prefix));
        self.options = own;
        self.native.extend(Options::into_iter(native).map(|(k, v)| (k[prefix.len()..].to_owned(), v)));
    }

    /// Reads the options into a struct with `#[serde(default)]`. Values are texts: numbers in decimal, `true` and
    /// `false`, durations as `humantime_serde` reads them.
    ///
    /// # Errors
    /// `InvalidConfig`: an unknown option, with the nearest known one; a value that does not fit, with its option.
    pub fn options<T: DeserializeOwned>(&self) -> Result<T> {
        parse_options(&self.options)
    }

    /// The hosts in one line, without user and password.
    #[must_use]
    pub fn host_list(&self) -> String {
        let hosts: Vec<_> = self
            .hosts
            .iter()
            .map(|h| match h.port {
                Some(port) => h.with_default_port(port),
                None if h.name.contains(':') => format!("[{}]", h.name),
                None => h.name.clone(),
            })
            .collect();
        hosts.join(",")
    }
}

impl fmt::Debug for Endpoint {
    /// Names options without their values: any of them may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("url", &format_args!("{self}"))
            .field("options", &self.options.keys())
            .field("native", &self.native.keys())
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Endpoint {
    /// The URL without options, the password shown as `***`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme)?;
        if let Some(user) = &self.user {
            write!(f, "{user}")?;
            if self.password.is_some() {
                f.write_str(":***")?;
            }
            f.write_str("@")?;
        }
        f.write_str(&self.host_list())?;
        match &self.path {
            Some(path) => {
                write!(f, "/{}", percent_encoding::utf8_percent_encode(path, percent_encoding::NON_ALPHANUMERIC))
            }
            None => Ok(()),
        }
    }
}

/// Reads texts into a struct, strictly.
pub(crate) fn parse_options<T: DeserializeOwned>(options: &Options) -> Result<T> {
    let known = option_names::<T>();
    if let Some(unknown) = options.keys().find(|k| !known.contains(&k.as_str())) {
        return Err(unknown_option(unknown, known));
    }
    let read = |options: &Options| -> std::result::Result<T, de::value::Error> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.extend_pairs(options);
        serde_urlencoded::from_str(&query.finish())
    };
    read(options).map_err(|whole| {
        // The message of the whole names no option: find the one that fails alone.
        for (key, value) in options {
            if let Err(error) = read(&Options::from([(key.clone(), value.clone())])) {
                return Error::new(ErrorKind::InvalidConfig, format!("the value of `{key}` does not fit: {error}"))
                    .with_context("option", key);
            }
        }
        Error::new(ErrorKind::InvalidConfig, whole.to_string())
    })
}

/// The name under which a scheme's own options stand: that of the scheme without TLS.
pub(crate) fn family(scheme: &str) -> &str {
    match scheme {
        "amqps" => "amqp",
        "kafkas" => "kafka",
        other => other,
    }
}

/// Makes the error of an unknown option, with the nearest of those that are known; for adapters, whose own options the
/// core does not know.
#[must_use]
pub fn unknown_option(option: &str, known: &[&str]) -> Error {
    let error = Error::new(ErrorKind::InvalidConfig, format!("unknown option `{option}`"))
        .with_operation("configure")
        .with_context("option", option);
    match nearest(option, known.iter().copied()) {
        Some(near) => error.with_context("did_you_mean", near),
        None => {
            let known: BTreeSet<_> = known.iter().copied().collect();
            error.with_context("known", known.into_iter().collect::<Vec<_>>().join(", "))
        }
    }
}

/// The name that is likely meant: the most alike of those that are alike at all.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this names have little in common.
    const ALIKE: f64 = 0.75;
    known
        .into_iter()
        .map(|k| (strsim::jaro_winkler(name, k), k))
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k)
}

/// The names of the fields of a struct that derives `Deserialize`, for [`Driver::options`](crate::Driver).
#[must_use]
pub fn option_names<T: DeserializeOwned>() -> &'static [&'static str] {
    struct Names<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Names<'_> {
        type Error = de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(de::Error::custom("not a struct"))
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            _: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            Err(de::Error::custom("names only"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
            unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }

    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(Names(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(default)]
    struct Sample {
        prefetch: u32,
        heartbeat: Option<u16>,
        #[serde(with = "humantime_serde")]
        linger: Duration,
    }

    impl Default for Sample {
        fn default() -> Self {
            Self { prefetch: 256, heartbeat: None, linger: Duration::ZERO }
        }
    }

    fn parse(url: &str) -> Result<Endpoint> {
        url.parse()
    }

    #[test]
    fn options_are_read_with_their_types() {
        let sample: Sample = parse("x://h?prefetch=7&linger=5ms").unwrap().options().unwrap();
        assert_eq!((sample.prefetch, sample.heartbeat, sample.linger), (7, None, Duration::from_millis(5)));
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_nearest_name() {
        let error = parse("x://h?prefech=7").unwrap().options::<Sample>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert_eq!(error.context("did_you_mean"), Some("prefetch"));
    }

    #[test]
    fn a_value_that_does_not_fit_is_named() {
        let error = parse("x://h?heartbeat=1&prefetch=many").unwrap().options::<Sample>().unwrap_err();
        assert_eq!(error.context("option"), Some("prefetch"));
    }

    #[test]
    fn malformed_urls_are_refused_without_showing_the_password() {
        for url in [
            "",
            "amqp",
            "amqp:/x",
            "://x",
            "a b://x",
            "amqp://u:hunter2@h:0",
            "amqp://u:hunter2@h:99999",
            "x://[::1",
            "x://u:hunter2@:5672",
            "x://h?a=1&a=2",
            "x://%ff@h",
        ] {
            let error = parse(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_value_of_an_option() {
        let shown = format!("{:?}", parse("sqs://u:hunter1@h?secret_key=hunter2&sqs.password=hunter3").unwrap());
        assert!(!shown.contains("hunter") && shown.contains("secret_key"), "{shown}");
    }

    #[test]
    fn native_options_are_set_apart() {
        assert_eq!(parse("amqps://a?amqp.x-a=1").unwrap().native.keys().collect::<Vec<_>>(), ["x-a"]);
        let endpoint = parse("kafka://a,b:9?kafka.linger.ms=5&client_id=x").unwrap();
        assert_eq!(endpoint.native.get("linger.ms").map(String::as_str), Some("5"));
        assert_eq!(endpoint.options.len(), 1);
        assert_eq!(endpoint.host_list(), "a,b:9");
    }
}
