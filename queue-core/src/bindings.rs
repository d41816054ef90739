//! Named brokers, senders and receivers in a TOML file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use futures::future::try_join_all;
use serde::Deserialize;
use toml::Spanned;

use crate::address::Address;
use crate::broker::{CloseReport, Driver, Options};
use crate::client::Client;
use crate::config::{Endpoint, family, option_names, parse_options, unknown_option};
use crate::error::{Error, ErrorKind, Result};
use crate::receiver::{ReceiverBuilder, ReceiverConfig};
use crate::redrive::RedriveBuilder;
use crate::sender::{SenderBuilder, SenderConfig};

/// A configuration with named brokers, senders and receivers.
///
/// A broker has a `url` and any option of the URL; a sender `broker`, `to` and any option of [`SenderConfig`]; a
/// receiver `broker`, `from` and any option of [`ReceiverConfig`]. `${NAME}` and `${NAME:-default}` in a text stand for
/// an environment variable. Tables inside a broker are its own options (`[brokers.main.kafka] "linger.ms" = 5`), tables
/// inside a sender or receiver the broker's own options of that address (`amqp.x-max-length = 1000`); they bear the name
/// of the broker's scheme, and those of other schemes are left alone, so that one file serves several brokers.
///
/// ```
/// # use queue_core::{Bindings, memory};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> queue_core::Result<()> {
/// let bindings = Bindings::parse(r#"
///     [brokers.main]
///     url = "memory://"
///     [senders.orders]
///     broker = "main"
///     to = "orders"
///     [receivers.orders]
///     broker = "main"
///     from = "orders"
///     prefetch = 512
/// "#)?;
/// let connections = bindings.connect_with(&[memory::DRIVER]).await?;
/// connections.sender("orders").await?.send("hello").await?;
/// let delivery = connections.receiver("orders").await?.receive().await?;
/// # delivery.ack();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Bindings {
    file: String,
    brokers: BTreeMap<String, Endpoint>,
    /// The line of each option of each broker; whether its driver knows it shows when it connects.
    lines: BTreeMap<(String, String), usize>,
    senders: BTreeMap<String, Handle<SenderConfig>>,
    receivers: BTreeMap<String, Handle<ReceiverConfig>>,
}

/// A sender or a receiver of the file.
#[derive(Debug, Clone)]
struct Handle<T> {
    broker: String,
    address: Address,
    config: T,
    /// The options that are its own, as texts.
    set: Options,
    /// Those of its broker's own.
    native: Options,
}

type Table = BTreeMap<Spanned<String>, Spanned<toml::Value>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    brokers: BTreeMap<String, Table>,
    #[serde(default)]
    senders: BTreeMap<String, Table>,
    #[serde(default)]
    receivers: BTreeMap<String, Table>,
}

impl Bindings {
    /// Reads a file.
    ///
    /// # Errors
    /// `InvalidConfig`, with file, line and key: the file cannot be read, is no TOML, has an unknown key, a value that
    /// does not fit, a reference to a broker that is not there, or an environment variable that is not set.
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self> {
        let file = path.as_ref().display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|e| {
            Error::new(ErrorKind::InvalidConfig, "the file cannot be read")
                .with_operation("configure")
                .with_context("file", &file)
                .with_source(e)
        })?;
        Self::read(&file, &text)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// As [`from_path`](Self::from_path).
    pub fn parse(text: &str) -> Result<Self> {
        Self::read("(text)", text)
    }

    fn read(file: &str, text: &str) -> Result<Self> {
        let place = |error: Error, at: usize| {
            error.with_operation("configure").with_context("file", file).with_context("line", line_of(text, at))
        };
        // The parser's own rendering quotes the line, which may hold a password.
        let parsed: File = toml::from_str(text).map_err(|e| {
            let error = Error::new(ErrorKind::InvalidConfig, without_text(e.message()));
            place(error, e.span().map_or(0, |s| s.start))
        })?;
        let mut bindings = Self {
            file: file.to_owned(),
            brokers: BTreeMap::new(),
            lines: BTreeMap::new(),
            senders: BTreeMap::new(),
            receivers: BTreeMap::new(),
        };
        for (name, table) in parsed.brokers {
            for key in table.keys() {
                let line = line_of(text, key.span().start);
                bindings.lines.insert((name.clone(), key.get_ref().clone()), line);
            }
            let endpoint = broker(&name, table, &place)?;
            bindings.brokers.insert(name, endpoint);
        }
        for (name, table) in parsed.senders {
            let sender = handle(&name, table, "to", &bindings.brokers, &place)?;
            bindings.senders.insert(name, sender);
        }
        for (name, table) in parsed.receivers {
            let receiver = handle(&name, table, "from", &bindings.brokers, &place)?;
            bindings.receivers.insert(name, receiver);
        }
        Ok(bindings)
    }

    /// Connects to every broker of the file that a sender or a receiver names.
    ///
    /// # Errors
    /// As [`Client::connect_with`], with the broker's name.
    pub async fn connect_with(&self, drivers: &[Driver]) -> Result<Connections> {
        let named: BTreeSet<&String> =
            self.senders.values().map(|s| &s.broker).chain(self.receivers.values().map(|r| &r.broker)).collect();
        let used = self.brokers.iter().filter(|(name, _)| named.contains(name));
        let clients = try_join_all(used.map(async |(name, endpoint)| {
            match Client::connect_endpoint(endpoint.clone(), drivers).await {
                Ok(client) => Ok((name.clone(), client)),
                Err(error) => {
                    let error =
                        error.with_context("binding", format!("brokers.{name}")).with_context("file", &self.file);
                    let key = error.context("option").unwrap_or_default().to_owned();
                    Err(match self.lines.get(&(name.clone(), key.clone())) {
                        Some(line) => error.with_context("line", line).with_context("key", key),
                        None => error,
                    })
                }
            }
        }))
        .await?;
        Ok(Connections { bindings: self.clone(), clients: clients.into_iter().collect() })
    }
}

/// The parser quotes a text that stands where a table belongs, which may be a URL with a password.
fn without_text(message: &str) -> String {
    match message.split_once("string \"") {
        Some((before, after)) => format!("{before}a text{}", after.rsplit_once('"').map_or("", |(_, tail)| tail)),
        None => message.to_owned(),
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at.min(text.len())].matches('\n').count() + 1
}

fn broker(name: &str, table: Table, place: &dyn Fn(Error, usize) -> Error) -> Result<Endpoint> {
    let (mut url, mut options) = (None, Options::new());
    for (key, value) in table {
        let at = key.span().start;
        let key = key.into_inner();
        if key == "url" {
            let text = plain(&key, value.as_ref()).map_err(|e| place(e, at))?;
            url = Some(text.parse::<Endpoint>().map_err(|e| place(e.with_context("key", &key), at))?);
        } else {
            flatten(&key, value.as_ref(), &mut options).map_err(|e| place(e, at))?;
        }
    }
    let mut endpoint = url.ok_or_else(|| {
        let error = Error::new(ErrorKind::InvalidConfig, "a broker has a `url`");
        place(error.with_context("key", format!("brokers.{name}.url")), 0)
    })?;
    endpoint.options.extend(options);
    endpoint.split_native();
    Ok(endpoint)
}

/// Schemes whose options may stand in a file although it names no such broker.
const SCHEMES: [&str; 4] = ["amqp", "kafka", "sqs", "memory"];

fn handle<T: serde::de::DeserializeOwned>(
    name: &str,
    table: Table,
    address_key: &'static str,
    brokers: &BTreeMap<String, Endpoint>,
    place: &dyn Fn(Error, usize) -> Error,
) -> Result<Handle<T>> {
    let known: Vec<&str> = ["broker", address_key].into_iter().chain(option_names::<T>().iter().copied()).collect();
    let families: BTreeSet<&str> = brokers.values().map(|e| family(&e.scheme)).chain(SCHEMES).collect();
    let (mut broker, mut address, mut options, mut start) = (None, None, Options::new(), 0);
    let mut natives = Options::new();
    for (key, value) in table {
        let at = key.span().start;
        start = at;
        let key = key.into_inner();
        let fail = |error: Error| place(error.with_context("key", &key), at);
        let in_family = |prefix: &str| families.contains(prefix);
        if key.split_once('.').is_some_and(|(prefix, _)| in_family(prefix))
            || value.as_ref().is_table() && in_family(&key)
        {
            flatten(&key, value.as_ref(), &mut natives).map_err(fail)?;
            continue;
        }
        if !known.contains(&key.as_str()) {
            return Err(fail(unknown_option(&key, &known)));
        }
        let text = plain(&key, value.as_ref()).map_err(fail)?;
        if key == "broker" {
            if !brokers.contains_key(&text) {
                let names: Vec<_> = brokers.keys().map(String::as_str).collect();
                let error = Error::new(ErrorKind::InvalidConfig, format!("there is no broker `{text}`"));
                return Err(fail(error.with_context("brokers", names.join(", "))));
            }
            broker = Some(text);
        } else if key == address_key {
            address = Some(text.parse::<Address>().map_err(fail)?);
        } else {
            parse_options::<T>(&Options::from([(key.clone(), text.clone())])).map_err(fail)?;
            options.insert(key.clone(), text);
        }
    }
    let missing = |key: &str| {
        let error = Error::new(ErrorKind::InvalidConfig, format!("`{key}` is missing"));
        place(error.with_context("binding", name), start)
    };
    // With one broker in the file there is nothing to choose.
    let only = (brokers.len() == 1).then(|| brokers.keys().next().cloned()).flatten();
    let broker = broker.or(only).ok_or_else(|| missing("broker"))?;
    let address = address.ok_or_else(|| missing(address_key))?;
    let config = parse_options(&options).map_err(|e| place(e, start))?;
    let own = format!("{}.", brokers.get(&broker).map_or("", |e| family(&e.scheme)));
    let native = natives.into_iter().filter_map(|(k, v)| Some((k.strip_prefix(&own)?.to_owned(), v))).collect();
    Ok(Handle { broker, address, config, set: options, native })
}

/// The text of a value that is not a table or an array, with environment variables put in.
fn plain(key: &str, value: &toml::Value) -> Result<String> {
    match value {
        toml::Value::String(s) => expand(s).map_err(|e| e.with_context("key", key)),
        toml::Value::Integer(i) => Ok(i.to_string()),
        toml::Value::Float(f) => Ok(f.to_string()),
        toml::Value::Boolean(b) => Ok(b.to_string()),
        _ => {
            Err(Error::new(ErrorKind::InvalidConfig, "the value is a text, a number or a boolean")
                .with_context("key", key))
        }
    }
}

fn flatten(key: &str, value: &toml::Value, into: &mut Options) -> Result<()> {
    match value {
        toml::Value::Table(table) => {
            table.iter().try_for_each(|(name, value)| flatten(&format!("{key}.{name}"), value, into))
        }
        other => plain(key, other).map(|text| drop(into.insert(key.to_owned(), text))),
    }
}

fn expand(text: &str) -> Result<String> {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("${") {
        let (reference, tail) = after.split_once('}').ok_or_else(|| {
            Error::new(ErrorKind::InvalidConfig, "a reference to an environment variable reads ${NAME}")
        })?;
        let (name, default) = reference.split_once(":-").map_or((reference, None), |(n, d)| (n, Some(d)));
        out.push_str(before);
        match (std::env::var(name), default) {
            (Ok(value), _) => out.push_str(&value),
            (Err(_), Some(default)) => out.push_str(default),
            (Err(_), None) => {
                return Err(Error::new(ErrorKind::InvalidConfig, "the environment variable is not set")
                    .with_context("variable", name));
            }
        }
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

/// The connected brokers of [`Bindings`], from which its senders and receivers are opened by name.
#[derive(Debug, Clone)]
pub struct Connections {
    bindings: Bindings,
    clients: BTreeMap<String, Client>,
}

impl Connections {
    /// Opens the sender of this name: `connections.sender("orders").await?`.
    pub fn sender(&self, name: &str) -> SenderBuilder {
        match self.bindings.senders.get(name) {
            Some(handle) => {
                let mut config = self.over_defaults(handle);
                config.native.clone_from(&handle.native);
                SenderBuilder::new(self.target(handle), config)
            }
            None => {
                SenderBuilder::new(Err(self.unknown("sender", name, self.bindings.senders.keys())), Default::default())
            }
        }
    }

    /// Opens the receiver of this name.
    pub fn receiver(&self, name: &str) -> ReceiverBuilder {
        match self.bindings.receivers.get(name) {
            Some(handle) => {
                let mut config = self.over_defaults(handle);
                config.native.clone_from(&handle.native);
                ReceiverBuilder::new(self.target(handle), config)
            }
            None => ReceiverBuilder::new(
                Err(self.unknown("receiver", name, self.bindings.receivers.keys())),
                Default::default(),
            ),
        }
    }

    /// Puts back the dead letters of the receiver of this name, with its group and its `dead_letter`. See
    /// [`Client::redrive`].
    ///
    /// ```
    /// # use queue_core::{Bindings, memory};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> queue_core::Result<()> {
    /// let bindings = Bindings::parse(r#"
    ///     brokers.main.url = "memory://"
    ///     [receivers.billing]
    ///     from = "topic:orders"
    ///     group = "billing"
    ///     dead_letter = "unpaid"
    /// "#)?;
    /// let connections = bindings.connect_with(&[memory::DRIVER]).await?;
    /// let mut inbox = connections.receiver("billing").await?;
    /// # connections.client("main").unwrap().sender("topic:orders").await?.send("hello").await?;
    /// inbox.receive().await?.reject("the customer is unknown");
    /// inbox.flush().await?; // the dead letter is in `unpaid`
    /// assert_eq!(connections.redrive("billing").await?.moved, 1);
    /// # assert_eq!(inbox.receive().await?.attempt(), 1);
    /// # assert_eq!(connections.redrive("shipping").await.unwrap_err().kind(), queue_core::ErrorKind::InvalidConfig);
    /// # Ok(())
    /// # }
    /// ```
    pub fn redrive(&self, name: &str) -> RedriveBuilder {
        match self.bindings.receivers.get(name) {
            Some(handle) => RedriveBuilder::new(self.target(handle), self.over_defaults(handle)),
            None => RedriveBuilder::new(
                Err(self.unknown("receiver", name, self.bindings.receivers.keys())),
                Default::default(),
            ),
        }
    }

    /// The client of the broker of this name, if a sender or a receiver names it.
    #[must_use]
    pub fn client(&self, broker: &str) -> Option<&Client> {
        self.clients.get(broker)
    }

    /// Closes every client within this time in all.
    pub async fn close(&self, within: std::time::Duration) -> CloseReport {
        let mut report = CloseReport::default();
        for part in futures::future::join_all(self.clients.values().map(|c| c.close(within))).await {
            report.merge(part);
        }
        report
    }

    fn target<T>(&self, handle: &Handle<T>) -> Result<(Client, Address)> {
        let client = self.clients.get(&handle.broker).ok_or_else(|| Error::closed("broker"))?;
        Ok((client.clone(), handle.address.clone()))
    }

    /// The handle's own options over those of the broker, which hold for all of its handles.
    fn over_defaults<T: serde::de::DeserializeOwned + Clone>(&self, handle: &Handle<T>) -> T {
        let Some(endpoint) = self.bindings.brokers.get(&handle.broker) else { return handle.config.clone() };
        let names = option_names::<T>();
        let mut options: Options = endpoint
            .options
            .iter()
            .filter(|(k, _)| names.contains(&k.as_str()))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        options.extend(handle.set.clone());
        parse_options(&options).unwrap_or_else(|_| handle.config.clone())
    }

    fn unknown<'a>(&self, what: &str, name: &str, known: impl Iterator<Item = &'a String>) -> Error {
        let known: Vec<_> = known.map(String::as_str).collect();
        Error::new(ErrorKind::InvalidConfig, format!("there is no {what} `{name}`"))
            .with_context("file", &self.bindings.file)
            .with_context("known", known.join(", "))
    }
}
