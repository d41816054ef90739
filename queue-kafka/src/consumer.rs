//! Receiving and answering.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use queue_core::{
    AckReport, AckToken, Address, Answer, Capabilities, CloseReport, Consumer, ConsumerOptions, DeliveryCount, Error,
    ErrorKind, Ordering, Participant, Received, Result, Settled, Source, Start,
};
use rdkafka::Offset;
use tokio::time::{Instant, timeout, timeout_at};

use crate::admin::topic_of;
use crate::callbacks::{Context as Callbacks, Native};
use crate::config::Settings;
use crate::error;
use crate::inbox::{Inbox, Limits};
use crate::lanes::{Lanes, Tier};
use crate::link::{Link, retire};
use crate::monitor::Watch;
use crate::poller::Poller;

/// The group of a source; `None` for a topic that everybody reads.
pub(crate) fn group_of(source: &Source) -> Option<&str> {
    match &source.group {
        Some(group) if source.address.is_topic() => Some(group),
        _ if source.address.is_topic() => None,
        _ => Some(source.address.name()),
    }
}

/// The longest delay of a retry that waits in memory, and holds its partition's position meanwhile.
const MAX_IN_PLACE: Duration = Duration::from_secs(3600);

/// The longest delay of a retry, with this longest tier.
pub(crate) fn max_retry_delay(tier: Option<Duration>) -> Duration {
    tier.map_or(MAX_IN_PLACE, |tier| tier.max(MAX_IN_PLACE))
}

/// Receives from one topic.
pub(crate) struct KafkaConsumer {
    topic: Arc<str>,
    tiers: Vec<(Duration, Address)>,
    inbox: Arc<Inbox>,
    request_timeout: Duration,
    /// Whether transactions can commit its positions: it has some, and is told none that are only half written.
    transactional: bool,
    capabilities: Arc<Capabilities>,
}

impl fmt::Debug for KafkaConsumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConsumer").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Drop for KafkaConsumer {
    fn drop(&mut self) {
        self.inbox.close(std::time::Instant::now() + self.request_timeout);
    }
}

impl KafkaConsumer {
    pub(crate) async fn open(
        settings: &Settings,
        link: &Link,
        source: &Source,
        options: &ConsumerOptions,
        capabilities: Arc<Capabilities>,
    ) -> Result<Self> {
        let topic = topic_of(&source.address)?;
        let partitions: Vec<i32> = link.existing(topic, "receive").await?.iter().map(|p| p.id).collect();
        let starts = starts(link, topic, &partitions, source).await?;
        let group = group_of(source);
        // Without a group no position is kept, but librdkafka wants a name.
        let config = settings.consumer(group.unwrap_or("anyqueue-none"), options)?;
        let transactional = group.is_some() && config.get("isolation.level") == Some("read_committed");
        let tiers = match group {
            // A copy would stand behind others of its key.
            Some(group) if options.ordering != Ordering::PerKey => tiers(settings, link, topic, group).await?,
            _ => Vec::new(),
        };
        let mut capabilities = (*capabilities).clone();
        if group.is_none() {
            // Nothing is committed.
            capabilities.delivery_count = DeliveryCount::None;
        }
        capabilities.max_retry_delay = max_retry_delay(tiers.last().map(|tier| tier.delay));
        let capabilities = Arc::new(capabilities);
        let inbox = Inbox::new(
            topic,
            Limits {
                prefetch: options.prefetch.max(1),
                prefetch_bytes: options.prefetch_bytes.max(1),
                max_ahead: settings.config.max_ahead.get() as usize,
                commits: group.is_some(),
                guard: settings.config.crash_guard && group.is_some(),
            },
        );
        let context = Callbacks::new(
            Watch(link.monitor().clone()),
            inbox.clone(),
            Lanes::new(topic, &tiers),
            &source.to_string(),
            options.events.clone(),
            if group.is_some() { starts.clone() } else { vec![] },
        );
        let native: Native = config.create_with_context(context).map_err(|e| error::of_config(&e))?;
        let poller = Poller::new(native, inbox.clone(), group.is_some(), settings.config.commit_interval)
            .map_err(|e| error::of(e, "receive"))?;
        let ready = if group.is_some() { poller.subscribe() } else { poller.assign(&starts) };
        if let Err(error) = ready {
            retire(poller);
            return Err(error::of(error, "receive").with_context("topic", topic));
        }
        std::thread::Builder::new().name("anyqueue-kafka-in".to_owned()).spawn(move || poller.run()).map_err(|e| {
            Error::new(ErrorKind::Internal, "cannot start a thread").with_operation("receive").with_source(e)
        })?;
        let tiers = tiers.iter().map(|tier| (tier.delay, tier.address())).collect();
        Ok(Self {
            topic: topic.into(),
            tiers,
            inbox,
            request_timeout: settings.config.request_timeout,
            transactional,
            capabilities,
        })
    }

    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }
}

/// The tiers whose topics are there.
async fn tiers(settings: &Settings, link: &Link, topic: &str, group: &str) -> Result<Vec<Tier>> {
    let mut there = Vec::new();
    for tier in Tier::all(topic, group, &settings.retry_tiers)? {
        match link.topic(&tier.topic, "receive").await {
            Ok(Some(_)) => there.push(tier),
            Ok(None) => {
                tracing::warn!(topic = tier.topic, "the topic of a tier is missing: its retries wait elsewhere")
            }
            Err(error) if error.kind() == ErrorKind::Unauthorized => {
                tracing::warn!(topic = tier.topic, %error, "the topic of a tier is not ours: its retries wait elsewhere");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(there)
}

/// Where partitions start that do not start where their group left off.
async fn starts(link: &Link, topic: &str, partitions: &[i32], source: &Source) -> Result<Vec<(i32, i64)>> {
    let end = || link.offsets(topic, partitions, Offset::End);
    let beginning = || link.offsets(topic, partitions, Offset::Beginning);
    match source.start {
        Start::Committed if group_of(source).is_some() => Ok(vec![]),
        Start::Committed | Start::Latest => end().await,
        Start::Earliest => beginning().await,
        Start::Offset(wanted) => {
            let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
            let last: BTreeMap<_, _> = end().await?.into_iter().collect();
            let within = |(p, first): (i32, i64)| (p, wanted.min(last.get(&p).copied().unwrap_or(first)).max(first));
            Ok(beginning().await?.into_iter().map(within).collect())
        }
        Start::Time(time) => {
            // Rounded up: a record's time has milliseconds.
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            let millis = i64::try_from(since.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX);
            let last: BTreeMap<_, _> = end().await?.into_iter().collect();
            let found = link.offsets(topic, partitions, Offset::Offset(millis)).await?;
            // Nothing is as late as that: what comes from now on.
            let behind =
                |(p, offset): (i32, i64)| (p, if offset < 0 { last.get(&p).copied().unwrap_or(0) } else { offset });
            Ok(found.into_iter().map(behind).collect())
        }
        _ => Err(Error::unsupported("this start is not supported").with_operation("receive")),
    }
}

#[async_trait]
impl Consumer for KafkaConsumer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.capabilities.clone()
    }

    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>> {
        match self.inbox.take(max.get(), into, cx.waker()) {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        }
    }

    fn ack(&self, tokens: &[AckToken]) -> AckReport {
        AckReport { stale: self.inbox.answer(tokens.iter().copied(), true) }
    }

    fn settle(&self, answers: Vec<Answer>) -> Settled {
        let mut stale = Vec::new();
        for (index, answer) in answers.into_iter().enumerate() {
            let token = answer.token();
            let lost = match answer {
                // There is no lease to extend: the message is held as long as its partition.
                Answer::Extend(..) => !self.inbox.holds(token),
                // There is nobody to give it to while this consumer has the partition: it stays uncommitted.
                _ => !self.inbox.answer(std::iter::once(token), false).is_empty(),
            };
            if lost {
                stale.push(index);
            }
        }
        Settled { stale, pending: None }
    }

    fn holds(&self, token: AckToken) -> bool {
        self.inbox.holds(token)
    }

    fn note_attempt(&self, token: AckToken, attempt: u32) {
        self.inbox.try_again(token, attempt);
    }

    fn retry_tiers(&self) -> &[(Duration, Address)] {
        &self.tiers
    }

    fn participant(&self) -> Option<Participant> {
        self.transactional.then(|| Participant::new(self.inbox.clone()))
    }

    async fn flush(&self) -> Result<()> {
        let Some(done) = self.inbox.flush() else { return Ok(()) };
        match timeout(self.request_timeout, done).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::closed("consumer").with_operation("flush")),
            Err(_) => Err(match self.inbox.commit_error() {
                Some(error) => error.with_operation("flush"),
                None => Error::new(ErrorKind::Timeout, "the broker did not confirm the commit").with_operation("flush"),
            }),
        }
    }

    fn set_paused(&self, paused: bool) {
        self.inbox.set_paused(paused);
    }

    async fn stop(&self) {
        self.inbox.stop();
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        close(&self.inbox, deadline).await
    }
}

/// Ends a consumer: commits what was acknowledged and leaves the group, until the deadline.
pub(crate) async fn close(inbox: &Inbox, deadline: Instant) -> CloseReport {
    let mut report = CloseReport::default();
    let first = match inbox.close(deadline.into_std()) {
        Some(left) => {
            report.unanswered = left.unanswered;
            report.released = left.released;
            true
        }
        None => false,
    };
    let late = timeout_at(deadline, inbox.gone()).await.is_err();
    if first {
        if let Some(error) = inbox.commit_error() {
            report.errors.push(error.with_operation("close"));
        } else if late {
            report.errors.push(
                Error::new(ErrorKind::Timeout, "the last acknowledgements may not be committed")
                    .with_operation("close"),
            );
        } else if let Some(error) = inbox.cut_off() {
            report.errors.push(error.with_operation("close"));
        }
    }
    report
}
