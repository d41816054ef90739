//! Putting dead letters back.

use std::fmt;
use std::future::IntoFuture;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;

use crate::address::{Address, AddressKind, Source};
use crate::broker::ConsumerOptions;
use crate::capability::RetryVia;
use crate::client::Client;
use crate::error::{Error, ErrorKind, Result};
use crate::message::Message;
use crate::receiver::{ReceiverConfig, checked, copier, dead_letter_of, source_of};

mod expected;
mod pass;

use expected::Expected;
use pass::{MOST_BYTES, Pass, Wanted};

/// Most dead letters that are held at a time where some may stay, and where all that lie there are to go.
const MOST_HELD: usize = 10_000;
const MOST_ON_THE_WAY: usize = 512;
/// More than the limit, because one may be met that cannot be read.
const SPARE: usize = 32;
/// How long nothing may come before a pass ends.
const IDLE: Duration = Duration::from_secs(5);

/// What a pass over dead letters did.
///
/// ```
/// # use queue_core::Redriven;
/// fn tell(redriven: &Redriven) {
///     println!("{} are back, {} were not chosen", redriven.moved, redriven.kept);
///     for why in &redriven.failed {
///         println!("one stays: {why}");
///     }
/// }
/// # tell(&Redriven::default());
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
#[must_use = "dead letters that could not be put back are told here"]
pub struct Redriven {
    /// Those that are back: the broker has confirmed the copy, and the dead letter is acknowledged.
    pub moved: u64,
    /// Those that the filter did not choose. They stay.
    pub kept: u64,
    /// Those that came from another source, in a dead-letter queue that several share. They stay.
    pub others: u64,
    /// Those that died after the pass began, by the clock of whoever made the dead letter. They stay.
    pub later: u64,
    /// Why others that were chosen stay, one error for each: it cannot be read (`Codec`), its source is gone (`NotFound`,
    /// `Unroutable`), it is too large there (`TooLarge`), the broker took it away meanwhile (`LeaseLost`), or what else a send
    /// fails with. With outcome `Unknown` it may be back and stay as well.
    pub failed: Vec<Error>,
    /// Why the pass ended before every dead letter was looked at, or why some that are back stay as well; `None`: neither, or
    /// its limit was reached.
    ///
    /// `TooLarge`: too many are held, or stay beside what is back (Kafka). `Timeout`: fewer came than the broker told of.
    /// `LeaseLost`: the broker took away what was held. Else what the broker says.
    pub stopped: Option<Error>,
}

type Filter = Box<dyn FnMut(&Message) -> bool + Send>;

/// Puts dead letters back to where they came from; await it. See [`Client::redrive`].
#[must_use = "a builder does nothing until it is awaited"]
pub struct RedriveBuilder {
    target: Result<(Client, Address)>,
    config: ReceiverConfig,
    filter: Option<Filter>,
    limit: u64,
    idle: Duration,
}

impl fmt::Debug for RedriveBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedriveBuilder").field("target", &self.target).finish_non_exhaustive()
    }
}

impl RedriveBuilder {
    pub(crate) fn new(target: Result<(Client, Address)>, config: ReceiverConfig) -> Self {
        Self { target, config, filter: None, limit: u64::MAX, idle: IDLE }
    }

    /// The group, for topics: its dead letters come back to it alone. Default: none.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.config.group = Some(group.into());
        self
    }

    /// Where the dead letters lie. Default: what `dead_letter` is in the URL of this client, else `<queue>-dlq`. What a receiver
    /// was opened with is not known here: name the same, or use [`Connections::redrive`](crate::Connections::redrive).
    pub fn from(mut self, address: impl Into<String>) -> Self {
        self.config.dead_letter = Some(address.into());
        self
    }

    /// Chooses the dead letters to put back, by all they say, the headers of [`dead_letter`](crate::dead_letter) included.
    /// Those for which it answers `false` stay; SQS, and RabbitMQ 4 before 4.3, count that they were handed out. Default: all.
    ///
    /// At most 10,000 (64 MiB) can stay in a pass, because they are held until its end: one that meets more stops. Without a
    /// filter, and without an address by [`from`](Self::from), it is 512.
    pub fn filter(mut self, filter: impl FnMut(&Message) -> bool + Send + 'static) -> Self {
        self.filter = Some(Box::new(filter));
        self
    }

    /// Chooses this many at most. Default: no limit.
    pub fn limit(mut self, messages: u64) -> Self {
        self.limit = messages;
        self
    }

    /// How long nothing that was there at the start may come before the pass ends, where the broker's count does not end it.
    /// Default: 5 s.
    ///
    /// Until the first dead letter comes it is at least 30 s where the broker says that there is one.
    pub fn idle(mut self, time: Duration) -> Self {
        self.idle = time;
        self
    }
}

impl IntoFuture for RedriveBuilder {
    type Output = Result<Redriven>;
    type IntoFuture = BoxFuture<'static, Result<Redriven>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.run().await.map_err(|e| e.with_operation("redrive")) })
    }
}

impl RedriveBuilder {
    async fn run(self) -> Result<Redriven> {
        let Self { target, config, filter, limit, idle } = self;
        let (client, address) = target?;
        let inner = client.inner();
        inner.check_open()?;
        checked(&config)?;
        let source = source_of(address, &config)?;
        inner.register_name(&source.address)?;
        let capabilities = inner.broker.capabilities();
        if !capabilities.dead_letter {
            return Err(Error::unsupported("this broker has no dead letters").with_context("source", source));
        }
        let Some(dead_letters) = dead_letter_of(&source, &config)? else {
            let why = "there is no dead-letter address: name one with `from`";
            return Err(Error::new(ErrorKind::InvalidInput, why).with_context("source", source));
        };
        let graveyard = Source::new(dead_letters);
        let before = SystemTime::now();
        let expected = Expected::of(&client, &graveyard).await?;
        if limit == 0 || expected == Expected::Exactly(0) {
            return Ok(Redriven::default());
        }
        // What is fetched and not looked at goes back too, and some brokers count that.
        let some_stay = filter.is_some() || config.dead_letter.is_some();
        let chosen = usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(SPARE);
        let most = if some_stay { MOST_HELD } else { chosen.min(MOST_ON_THE_WAY) };
        let options = ConsumerOptions {
            prefetch: most,
            prefetch_bytes: MOST_BYTES,
            lease: config.lease,
            events: inner.events.clone(),
            ..ConsumerOptions::default()
        };
        let consumer = inner.broker.consumer(&graveyard, &options).await?;
        let (to, group) = destination(&source, capabilities.retry_via);
        let outbox = copier(inner, to).await?;
        let wanted = Wanted { source, group, filter, limit, most, before };
        Ok(Pass::new(consumer, outbox, wanted, expected, config.lease, idle).run().await)
    }
}

/// Where what is put back goes. A group has a queue of its own, or, where messages are kept in a log, what is put back for
/// it goes to the topic and names it, and the receivers of other groups leave it out.
fn destination(source: &Source, retry_via: RetryVia) -> (Address, Option<String>) {
    match (&source.group, source.queue_name()) {
        (Some(group), _) if retry_via == RetryVia::InPlace => (source.address.clone(), Some(group.to_string())),
        (Some(_), Some(queue)) => (Address::derived(AddressKind::Queue, &queue), None),
        _ => (source.address.clone(), None),
    }
}
