//! Transactions: what is sent in one becomes visible, and positions are committed, both or neither.

mod end;
mod producer;

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use queue_core::{
    Acks, Address, Capabilities, CloseReport, Error, ErrorKind, Outcome, Producer, ProducerOptions, Result,
    TransactionOptions, TransactionSession, Uncommitted,
};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::Producer as _;
use tokio::time::{Instant, sleep, timeout_at};

use self::end::{End, all, settle};
use self::producer::TransactionalProducer;
use crate::admin::topic_of;
use crate::config::Settings;
use crate::error;
use crate::inbox::{Granted, Inbox};
use crate::monitor::Monitor;
use crate::native::Native;

/// What an abort has at least, also when the time of its transaction is over: whoever reads waits for it.
const ABORT_TIME: Duration = Duration::from_secs(2);

/// What librdkafka can wait for at most.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

/// What the callers' deadlines are exceeded by at most: some of librdkafka's calls have a time of their own.
const GRACE: Duration = Duration::from_millis(2_500);

/// How long one try takes to open the name again, where something was left open; the next goes on with what it began.
const TRY: Duration = Duration::from_secs(2);
/// Between two of them, so that a `begin` comes in.
const PAUSE: Duration = Duration::from_millis(200);

/// How far a commit is, which whoever waits no longer can stop before it is asked for.
const PREPARING: u8 = 0;
const ASKED_FOR: u8 = 1;
const STOPPED: u8 = 2;

/// The native producer of a name, and what is known of it.
#[derive(Default)]
struct Stage {
    native: Option<Arc<Native>>,
    /// Whether a transaction is open.
    open: bool,
    /// Why there will be no other: somebody else has the name, or this was closed.
    ended: Option<Error>,
}

impl Stage {
    fn has(&self, native: &Arc<Native>) -> bool {
        self.native.as_ref().is_some_and(|present| Arc::ptr_eq(present, native))
    }
}

/// The transactions of one name.
pub(crate) struct Session {
    name: Arc<str>,
    options: TransactionOptions,
    settings: Settings,
    monitor: Arc<Monitor>,
    capabilities: Arc<Capabilities>,
    stage: Mutex<Stage>,
    /// Held by whoever makes a native producer: two would shut each other out. One that has not opened the name in its caller's
    /// time is kept, since a broker that takes longer than that would never come to an end with new ones.
    making: Mutex<Option<Arc<Native>>>,
    me: Weak<Self>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// What is left until the deadline.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).min(LONGEST)
}

/// Why a native call failed. librdkafka says `Fatal` of everything after a fatal error, and keeps what that was.
fn cause(native: &Native, error: &KafkaError) -> Option<Code> {
    match (error.rdkafka_error_code(), error) {
        (Some(Code::Fatal), _) => native.producer.client().fatal_error().map(|(code, _)| code),
        (None, KafkaError::Transaction(error)) => Some(error.code()),
        (code, _) => code,
    }
}

/// Whether another producer has the name.
fn is_fenced(code: Code) -> bool {
    matches!(code, Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch)
}

/// A thread of ours ended before its time.
fn lost(error: tokio::task::JoinError) -> Error {
    let why = "the thread of a transaction was lost";
    Error::new(ErrorKind::Internal, why).with_outcome(Outcome::Unknown).with_source(error)
}

fn late() -> Error {
    Error::new(ErrorKind::Timeout, "the broker did not answer before the deadline").with_operation("commit")
}

impl Session {
    /// Makes the producer of the name, which ends what others have open under it.
    pub(crate) async fn open(
        name: &str,
        options: &TransactionOptions,
        settings: &Settings,
        monitor: &Arc<Monitor>,
        capabilities: Arc<Capabilities>,
    ) -> Result<Arc<Self>> {
        let session = Arc::new_cyclic(|me| Self {
            name: name.into(),
            options: options.clone(),
            settings: settings.clone(),
            monitor: monitor.clone(),
            capabilities,
            stage: Mutex::default(),
            making: Mutex::default(),
            me: me.clone(),
        });
        let deadline = Instant::now() + options.deadline.min(LONGEST);
        session.blocking("open transactions", move |session| session.native(deadline).map(drop)).await?;
        Ok(session)
    }

    /// Runs what blocks on a thread that may.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl FnOnce(Arc<Self>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let Some(session) = self.me.upgrade() else { return Err(Error::closed("transactor")) };
        let done = tokio::task::spawn_blocking(move || work(session)).await;
        done.unwrap_or_else(|error| Err(lost(error))).map_err(|e| e.with_operation(operation))
    }

    /// The native producer that has the name.
    fn present(&self) -> Result<Option<Arc<Native>>> {
        let stage = self.stage.lock();
        stage.ended.clone().map_or_else(|| Ok(stage.native.clone()), Err)
    }

    /// The native producer, made anew where the last was let go. Blocks.
    fn native(&self, deadline: Instant) -> Result<Arc<Native>> {
        if let Some(native) = self.present()? {
            return Ok(native);
        }
        let making = self.making.try_lock_until(deadline.into_std());
        let mut making = making.ok_or_else(|| late().with_operation("begin"))?;
        // Somebody else may have made it meanwhile.
        if let Some(native) = self.present()? {
            return Ok(native);
        }
        let native = match making.take() {
            Some(native) => native,
            None => Arc::new(Native::new(&self.settings.transactional(&self.name, &self.options)?, &self.monitor)?),
        };
        if let Err(error) = native.producer.init_transactions(left(deadline)) {
            let goes_on = matches!(&error, KafkaError::Transaction(error) if error.is_retriable());
            let error = self.trouble(&native, error, "begin");
            if goes_on {
                *making = Some(native);
            } else {
                native.end();
            }
            drop(making);
            if self.present().is_err() {
                // Whoever ended this could not take it while it was being made.
                self.let_go();
            }
            return Err(error);
        }
        let mut stage = self.stage.lock();
        if let Some(ended) = &stage.ended {
            let ended = ended.clone();
            drop(stage);
            native.end();
            return Err(ended);
        }
        stage.native = Some(native.clone());
        Ok(native)
    }

    /// The error of a native call. One that says that somebody else has the name is the last word, unless it was we.
    fn trouble(&self, native: &Arc<Native>, error: KafkaError, operation: &'static str) -> Error {
        let code = cause(native, &error);
        let reason = match &error {
            KafkaError::Transaction(error) => Some(error.string()),
            _ => None,
        };
        let mut mapped = match code {
            Some(code) => error::of_code(code, operation),
            None => error::of(error, operation),
        };
        if code.is_some_and(is_fenced) {
            let why = "another instance has opened these transactions, or one was open for too long";
            mapped = Error::new(ErrorKind::Conflict, why).with_operation(operation);
            mapped = mapped.with_context("transactions", &self.name);
            if self.is_present(native) {
                self.end(mapped.clone());
            }
        }
        match reason {
            Some(reason) => mapped.with_context("reason", reason),
            None => mapped,
        }
    }

    /// Whether it was not let go meanwhile.
    fn is_present(&self, native: &Arc<Native>) -> bool {
        self.stage.lock().has(native)
    }

    /// No transaction begins any more.
    fn end(&self, why: Error) {
        self.stage.lock().ended.get_or_insert(why);
        self.let_go();
    }

    /// Lets the native producer go; what it has open the broker gives up, when the name is opened again or it expires.
    fn let_go(&self) {
        let native = {
            let mut stage = self.stage.lock();
            stage.open = false;
            stage.native.take()
        };
        if let Some(native) = native {
            native.end();
        }
        self.forget_what_is_made();
    }

    /// The same, unless it has gone already.
    fn let_go_of(&self, native: &Arc<Native>) {
        if self.is_present(native) {
            self.let_go();
        }
    }

    /// Has the broker decide what was left open, as soon as it can be reached: until then readers wait for it, and of the
    /// partitions whose positions are part of it nothing comes, so that there may be nothing for which to begin another.
    ///
    /// Not for longer than the transaction lasts: after that all it could do is to shut out whoever has the name by then.
    fn clear_up(&self) {
        let (me, until) = (self.me.clone(), Instant::now() + self.options.expires_after.min(LONGEST));
        tokio::spawn(async move {
            while let Some(session) = me.upgrade() {
                if Instant::now() > until {
                    session.forget_what_is_made();
                    break;
                }
                let tried = session.blocking("begin", |session| session.native(Instant::now() + TRY).map(drop)).await;
                match tried {
                    Err(error) if error.is_retryable() => {
                        tracing::debug!(%error, transactions = &*session.name, "what was left open is not decided yet");
                    }
                    // What is no matter of time the next `begin` tells.
                    _ => break,
                }
                drop(session);
                sleep(PAUSE).await;
            }
        });
    }

    /// Ends a native producer that is half made, unless somebody is at it.
    fn forget_what_is_made(&self) {
        if let Some(native) = self.making.try_lock().and_then(|mut making| making.take()) {
            native.end();
        }
    }

    fn begin_now(&self, deadline: Instant) -> Result<()> {
        let native = self.native(deadline)?;
        match native.producer.begin_transaction() {
            Ok(()) => {
                self.stage.lock().open = true;
                Ok(())
            }
            Err(error) => {
                let error = self.trouble(&native, error, "begin");
                self.let_go_of(&native);
                Err(error)
            }
        }
    }

    /// Gives up what is open. Blocks.
    fn abort_now(&self, deadline: Instant) -> Result<()> {
        let native = self.stage.lock().native.clone();
        native.map_or(Ok(()), |native| self.abort_of(&native, deadline))
    }

    fn abort_of(&self, native: &Arc<Native>, deadline: Instant) -> Result<()> {
        {
            let mut stage = self.stage.lock();
            if !stage.has(native) || !std::mem::take(&mut stage.open) {
                // A producer that went has left it to the broker.
                return Ok(());
            }
        }
        native.producer.abort_transaction(left(deadline).max(ABORT_TIME)).map_err(|error| {
            let error = self.trouble(native, error, "abort");
            self.let_go_of(native);
            self.clear_up();
            error
        })
    }

    /// Commits, with the positions for which it has the turn. Blocks.
    fn commit_now(&self, granted: &[Granted], phase: &AtomicU8, deadline: Instant) -> End {
        let native = match &*self.stage.lock() {
            Stage { native: Some(native), open: true, .. } => native.clone(),
            Stage { ended: Some(error), .. } => return End::Not(error.clone()),
            _ => return End::Not(Error::closed("transaction")),
        };
        for Granted { turn, positions, member } in granted {
            if let Err(error) = native.producer.send_offsets_to_transaction(positions, member, left(deadline)) {
                if cause(&native, &error) == Some(Code::OffsetMetadataTooLarge) {
                    turn.inbox().refuse_notes();
                }
                return self.refused(&native, error, deadline);
            }
        }
        if phase.compare_exchange(PREPARING, ASKED_FOR, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return End::Not(late());
        }
        match native.producer.commit_transaction(left(deadline)) {
            Ok(()) => {
                // Too late for whoever waited, another may have begun.
                let mut stage = self.stage.lock();
                stage.open &= !stage.has(&native);
                End::Committed
            }
            // Of its messages some are not with the broker: the commit was not asked for.
            Err(error @ KafkaError::Flush(_)) => self.refused(&native, error, deadline),
            Err(KafkaError::Transaction(error)) if error.txn_requires_abort() => {
                let error = self.trouble(&native, KafkaError::Transaction(error), "commit").with_retryable(true);
                // The broker gives up no transaction that it has committed.
                match self.abort_of(&native, deadline) {
                    Ok(()) if self.is_present(&native) => End::Not(error),
                    _ => End::Unknown(error),
                }
            }
            Err(error) => {
                let error = self.trouble(&native, error, "commit");
                self.let_go_of(&native);
                self.clear_up();
                End::Unknown(error)
            }
        }
    }

    /// The transaction cannot be committed, which was not asked for yet.
    fn refused(&self, native: &Arc<Native>, error: KafkaError, deadline: Instant) -> End {
        let error = self.trouble(native, error, "commit");
        // Another transaction finds its receivers as they are then.
        let retryable = error.kind() != ErrorKind::Conflict && error.kind() != ErrorKind::Unauthorized;
        let error = error.with_retryable(retryable);
        if let Err(error) = self.abort_of(native, deadline) {
            tracing::debug!(%error, transactions = &*self.name, "what cannot be committed cannot be given up yet either");
        }
        End::Not(error)
    }

    /// The turns of all receivers, in one order for all transactions.
    async fn turns(acks: Vec<Acks>, deadline: Instant) -> Result<Vec<Granted>> {
        let mut parts = Vec::with_capacity(acks.len());
        for Acks { participant, tokens } in acks {
            let foreign = || Error::new(ErrorKind::InvalidInput, "a receiver is of another kind of broker");
            parts.push((participant.downcast::<Inbox>().ok_or_else(foreign)?, tokens));
        }
        parts.sort_by_key(|(inbox, _)| Arc::as_ptr(inbox).addr());
        let mut granted = Vec::with_capacity(parts.len());
        for (inbox, tokens) in parts {
            granted.push(match timeout_at(deadline, inbox.turn(tokens)).await {
                Ok(turn) => turn.map_err(|e| e.with_context("topic", inbox.topic()))?,
                Err(_) => {
                    let why = "the receiver is still committing positions";
                    return Err(Error::new(ErrorKind::Timeout, why).with_context("topic", inbox.topic()));
                }
            });
        }
        Ok(granted)
    }
}

#[async_trait]
impl TransactionSession for Session {
    async fn producer(&self, to: &Address, _: &ProducerOptions) -> Result<Arc<dyn Producer>> {
        let topic = topic_of(to)?;
        let native = self.stage.lock().native.clone();
        if let Some(native) = native {
            native.find(topic, self.settings.config.request_timeout).await;
        }
        let session = self.me.upgrade().ok_or_else(|| Error::closed("transactor"))?;
        Ok(Arc::new(TransactionalProducer::new(topic, session)))
    }

    async fn begin(&self, deadline: Instant) -> Result<()> {
        self.blocking("begin", move |session| session.begin_now(deadline)).await
    }

    async fn commit(&self, acks: Vec<Acks>, deadline: Instant) -> Result<(), Uncommitted> {
        let granted = match Self::turns(acks, deadline).await {
            Ok(granted) => granted,
            Err(error) => {
                // The error tells why; what comes of giving up changes nothing.
                let _ = self.abort(deadline).await;
                return Err(error.with_outcome(Outcome::NotSent).into());
            }
        };
        let phase = Arc::new(AtomicU8::new(PREPARING));
        let shown = phase.clone();
        let session = self.me.upgrade().ok_or_else(|| Error::closed("transactor"))?;
        let mut work = tokio::task::spawn_blocking(move || {
            let end = session.commit_now(&granted, &shown, deadline);
            let known = settle(granted, &end);
            (end, known)
        });
        let Ok(done) = timeout_at(deadline + GRACE, &mut work).await else {
            // Goes on alone, until another native producer opens the name, which shuts this one out.
            self.let_go();
            self.clear_up();
            let stopped = phase.compare_exchange(PREPARING, STOPPED, Ordering::AcqRel, Ordering::Acquire).is_ok();
            let error = late().with_outcome(if stopped { Outcome::NotSent } else { Outcome::Unknown });
            let known = async move {
                if let Ok((_, known)) = work.await {
                    all(known).await;
                }
            };
            return Err(Uncommitted { error, known: Some(Box::pin(known)) });
        };
        match done {
            Ok((End::Committed, _)) => Ok(()),
            Ok((End::Not(error), _)) => Err(error.with_outcome(Outcome::NotSent).into()),
            Ok((End::Unknown(error), known)) => {
                let error = error.with_outcome(Outcome::Unknown);
                Err(Uncommitted { error, known: Some(Box::pin(all(known))) })
            }
            Err(error) => Err(lost(error).with_operation("commit").into()),
        }
    }

    async fn abort(&self, deadline: Instant) -> Result<()> {
        self.blocking("abort", move |session| session.abort_now(deadline)).await
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        let mut report = CloseReport::default();
        // From here on nothing opens the name, and so shuts out whoever opens it next.
        self.stage.lock().ended.get_or_insert_with(|| Error::closed("transactor"));
        if let Err(error) = self.abort(deadline).await {
            report.errors.push(error);
        }
        // Whoever is at it just now ends what it made.
        let made = self.blocking("close", move |session| {
            drop(session.making.try_lock_until(deadline.into_std()));
            Ok(())
        });
        if let Err(error) = made.await {
            report.errors.push(error);
        }
        self.end(Error::closed("transactor"));
        report
    }
}
