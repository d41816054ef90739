//! From an endpoint to a client: the driver is chosen here.

use std::time::Duration;

use tokio::time::timeout;

use crate::broker::{Driver, Options};
use crate::client::Client;
use crate::config::{Endpoint, nearest, option_names, parse_options, unknown_option};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::receiver::ReceiverConfig;
use crate::sender::SenderConfig;

/// Schemes that exist, with the feature of the facade that brings them.
const FEATURES: &[(&str, &str)] =
    &[("amqp", "amqp"), ("amqps", "amqp"), ("kafka", "kafka"), ("kafkas", "kafka-tls"), ("sqs", "sqs")];

/// The option that the core itself reads.
const CONNECT_TIMEOUT: &str = "connect_timeout";

pub(crate) async fn connect(mut endpoint: Endpoint, drivers: &[Driver]) -> Result<Client> {
    let driver = find(&endpoint.scheme, drivers)?;
    let (sender_names, receiver_names) = (option_names::<SenderConfig>(), option_names::<ReceiverConfig>());
    let driver_names = (driver.options)();
    let known: Vec<&str> =
        [sender_names, receiver_names, driver_names, &[CONNECT_TIMEOUT]].into_iter().flatten().copied().collect();
    if let Some(unknown) = endpoint.options.keys().find(|k| !known.contains(&k.as_str())) {
        return Err(unknown_option(unknown, &known));
    }
    if let Some(text) = endpoint.options.remove(CONNECT_TIMEOUT) {
        endpoint.connect_timeout = humantime::parse_duration(&text).map_err(|e| {
            Error::new(ErrorKind::InvalidConfig, format!("the value of `{CONNECT_TIMEOUT}` does not fit: {e}"))
                .with_context("option", CONNECT_TIMEOUT)
        })?;
    }
    let sender = parse_options(&only(&endpoint.options, sender_names))?;
    let receiver = parse_options(&only(&endpoint.options, receiver_names))?;
    endpoint.options.retain(|k, _| driver_names.contains(&k.as_str()));
    let events = Events::new();
    // Drivers keep to the timeout themselves; this is the backstop.
    let most = endpoint.connect_timeout.saturating_add(Duration::from_secs(1));
    let shown = endpoint.to_string();
    let broker = match timeout(most, (driver.connect)(endpoint, events.clone())).await {
        Ok(connected) => connected,
        Err(_) => Err(Error::new(ErrorKind::Timeout, "the broker did not answer")),
    };
    let broker = broker.map_err(|e| e.with_operation("connect").with_context("broker", shown))?;
    Ok(Client::new(crate::observe::system(driver.name), broker, events, sender, receiver))
}

fn only(options: &Options, names: &[&str]) -> Options {
    options.iter().filter(|(k, _)| names.contains(&k.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn find<'a>(scheme: &str, drivers: &'a [Driver]) -> Result<&'a Driver> {
    if let Some(driver) = drivers.iter().find(|d| d.schemes.contains(&scheme)) {
        return Ok(driver);
    }
    let schemes: Vec<&str> = drivers.iter().flat_map(|d| d.schemes).copied().collect();
    let error = Error::new(ErrorKind::InvalidConfig, format!("no driver for the scheme `{scheme}`"))
        .with_operation("connect")
        .with_context("compiled_in", schemes.join(", "));
    if let Some((_, feature)) = FEATURES.iter().find(|(s, _)| *s == scheme) {
        return Err(error.with_context("missing_feature", feature));
    }
    let all = schemes.iter().copied().chain(FEATURES.iter().map(|(s, _)| *s));
    Err(match nearest(scheme, all) {
        Some(near) => error.with_context("did_you_mean", near),
        None => error,
    })
}

/// The endpoint that the environment names.
pub(crate) fn endpoint_of(vars: impl Iterator<Item = (String, String)>) -> Result<Endpoint> {
    let mut options: Options =
        vars.filter_map(|(name, value)| Some((name.strip_prefix("QUEUE_")?.to_ascii_lowercase(), value))).collect();
    let Some(url) = options.remove("url") else {
        return Err(Error::new(ErrorKind::InvalidConfig, "the environment variable QUEUE_URL is not set")
            .with_operation("configure"));
    };
    let mut endpoint: Endpoint = url.parse()?;
    endpoint.options.extend(options);
    Ok(endpoint)
}
