//! A suite that passes whatever it is given proves nothing: what breaks a promise on purpose must fail its case.

#![cfg(feature = "conformance")]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use queue_core::conformance::{Fault, Harness, Interpose, Layered, Report, check, check_faults, fault_case_names};
use queue_core::{
    AckReport, AckToken, Answer, Broker, Capabilities, CloseReport, Completion, Consumer, Driver, Endpoint, Error,
    ErrorKind, Events, HeaderValue, Message, Producer, Receipt, Received, Result, Settled, memory,
};
use tokio::time::Instant;

struct Memory(&'static str, &'static [Driver]);

impl Harness for Memory {
    fn name(&self) -> &str {
        "memory"
    }

    fn drivers(&self) -> &[Driver] {
        self.1
    }

    fn url(&self) -> Option<String> {
        Some(self.0.to_owned())
    }
}

const MEMORY: Memory = Memory("memory://broken-on-purpose", &[memory::DRIVER]);

/// Fails unless exactly this case runs, and fails.
fn caught(report: &Report, case: &str) {
    assert_eq!(report.failed.len(), 1, "{case} did not fail: {report:?}");
    assert!(report.passed.is_empty() && report.unsupported.is_empty(), "{report:?}");
}

async fn consumer_is_caught(fault: Wrong, case: &str) {
    let layer = Interpose::default().consumers(move |inner| Arc::new(WrongConsumer { inner, fault }));
    caught(&check(Layered::new(MEMORY, layer), |name| name.ends_with(case)).await, case);
}

async fn producer_is_caught(fault: Wrong, case: &str) {
    let layer = Interpose::default().producers(move |inner| Arc::new(WrongProducer { inner, fault }));
    caught(&check(Layered::new(MEMORY, layer), |name| name.ends_with(case)).await, case);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wrong {
    // Consumers.
    AcksNothing,
    AcksAllReleases,
    ForgetsAttempts,
    RetriesAtOnce,
    HidesLateAnswers,
    HandsOutTwice,
    AcksUnseen,
    NeverPauses,
    Reverses,
    // Producers.
    AcceptsUnsent,
    SendsTwice,
    HidesFailures,
    TypesToText,
    LosesKeys,
    IgnoresDelays,
    Pretends,
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_consumers_are_caught() {
    tokio::join!(
        consumer_is_caught(Wrong::AcksNothing, "/an_acknowledged_message_never_comes_back"),
        consumer_is_caught(Wrong::AcksNothing, "/acks_out_of_order_survive_a_crash"),
        consumer_is_caught(Wrong::AcksAllReleases, "/a_dropped_receiver_gives_back_what_it_had_fetched"),
        consumer_is_caught(Wrong::AcksAllReleases, "/a_released_message_comes_back_and_is_no_failure"),
        consumer_is_caught(Wrong::ForgetsAttempts, "/a_retry_comes_again_counted_and_after_the_backoff"),
        consumer_is_caught(Wrong::ForgetsAttempts, "/the_last_failure_makes_a_dead_letter"),
        consumer_is_caught(Wrong::RetriesAtOnce, "/a_retry_waits_for_its_delay_while_others_go_on"),
        consumer_is_caught(Wrong::HidesLateAnswers, "/an_answer_after_the_lease_moves_nothing"),
        consumer_is_caught(Wrong::HandsOutTwice, "/competing_receivers_share_and_nothing_comes_twice"),
        consumer_is_caught(Wrong::NeverPauses, "/a_paused_receiver_gets_nothing_until_it_resumes"),
        consumer_is_caught(Wrong::Reverses, "/messages_of_a_key_arrive_in_order"),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_producers_are_caught() {
    tokio::join!(
        producer_is_caught(Wrong::AcceptsUnsent, "/what_was_confirmed_is_there_for_another_client"),
        producer_is_caught(Wrong::AcceptsUnsent, "/fifty_concurrent_senders_lose_and_double_nothing"),
        producer_is_caught(Wrong::SendsTwice, "/fifty_concurrent_senders_lose_and_double_nothing"),
        producer_is_caught(Wrong::SendsTwice, "/a_rejected_message_reaches_the_dead_letters_once"),
        producer_is_caught(Wrong::HidesFailures, "/a_message_to_a_missing_queue_is_an_error_and_no_hang"),
        producer_is_caught(Wrong::TypesToText, "/every_type_of_header_value_keeps_its_type"),
        producer_is_caught(Wrong::LosesKeys, "/keys_of_any_bytes_arrive"),
        producer_is_caught(Wrong::IgnoresDelays, "/a_delayed_message_is_never_early_and_holds_up_nobody"),
    );
}

/// The memory broker, whose connections are never lost: so nothing explains what is.
struct Unharmed;

#[async_trait]
impl Harness for Unharmed {
    fn name(&self) -> &str {
        "unharmed"
    }

    fn drivers(&self) -> &[Driver] {
        &[memory::DRIVER]
    }

    fn url(&self) -> Option<String> {
        Some("memory://unharmed".to_owned())
    }

    fn faults(&self) -> usize {
        1
    }

    async fn disconnect(&self) -> Result<Fault> {
        Ok(Fault::Done)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_or_repeated_under_faults_is_caught() {
    const CASE: &str = "/lost_connections_mid_stream_lose_nothing_confirmed";
    let of_stream = |name: &str| name.ends_with(CASE);
    let unseen = Interpose::default().consumers(|inner| Arc::new(WrongConsumer { inner, fault: Wrong::AcksUnseen }));
    let twice = Interpose::default().producers(|inner| Arc::new(WrongProducer { inner, fault: Wrong::SendsTwice }));
    let (right, unseen, twice) = tokio::join!(
        check_faults(Unharmed, of_stream),
        check_faults(Layered::new(Unharmed, unseen), of_stream),
        check_faults(Layered::new(Unharmed, twice), of_stream),
    );
    assert!(right.is_success(), "{right:?}");
    caught(&unseen, CASE);
    caught(&twice, CASE);
    assert!(unseen.failed[0].1.contains("never came"), "{unseen:?}");
    assert!(twice.failed[0].1.contains("came again"), "{twice:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_harness_cannot_do_to_its_broker_is_listed() {
    let report = check_faults(MEMORY, |_| true).await;
    let told = "/a_queue_deleted_under_its_receiver_is_made_again_or_told";
    assert!(report.passed.iter().all(|name| name.ends_with(told)) && report.failed.is_empty(), "{report:?}");
    assert_eq!(report.passed.len() + report.left_out.len(), fault_case_names().len(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capability_that_is_declared_and_does_not_work_is_caught() {
    let harness = Memory("memory://pretends?profile=amqp", &[memory::DRIVER]);
    let layer = Interpose::default().producers(|inner| Arc::new(WrongProducer { inner, fault: Wrong::Pretends }));
    let report = check(Layered::new(harness, layer), |name| {
        name.ends_with("/a_higher_priority_goes_first") || name.ends_with("/an_address_can_do_no_more_than_its_broker")
    });
    let report = report.await;
    assert_eq!(report.failed.len(), 2, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_in_an_error_is_caught() {
    fn connect(endpoint: Endpoint, events: Events) -> BoxFuture<'static, Result<Arc<dyn Broker>>> {
        Box::pin(async move {
            match &endpoint.password {
                Some(password) => {
                    let why = format!("the password {} is wrong", password.expose());
                    Err(Error::new(ErrorKind::Unauthorized, why))
                }
                None => (memory::DRIVER.connect)(endpoint, events).await,
            }
        })
    }
    const TELLS: Driver = Driver::new("tells", &["memory"], memory::DRIVER.options, connect);
    let case = "/no_secret_shows_in_what_is_printed";
    caught(&check(Memory("memory://tells", &[TELLS]), |name| name.ends_with(case)).await, case);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leak_is_caught() {
    // Keeps what it opened for ever.
    let layer = Interpose::default().consumers(|inner| {
        let kept = inner.clone();
        tokio::spawn(async move {
            let _kept = kept;
            std::future::pending::<()>().await;
        });
        inner
    });
    let case = "/opening_and_closing_leaks_nothing";
    caught(&check(Layered::new(MEMORY, layer), |name| name.ends_with(case)).await, case);
}

#[derive(Debug)]
struct WrongConsumer {
    inner: Arc<dyn Consumer>,
    fault: Wrong,
}

#[async_trait]
impl Consumer for WrongConsumer {
    fn capabilities(&self) -> Arc<Capabilities> {
        self.inner.capabilities()
    }

    fn poll_receive(&self, cx: &mut Context<'_>, max: NonZeroUsize, into: &mut Vec<Received>) -> Poll<Result<()>> {
        let before = into.len();
        let polled = self.inner.poll_receive(cx, max, into);
        match self.fault {
            Wrong::ForgetsAttempts => into[before..].iter_mut().for_each(|r| r.attempt = 1),
            Wrong::Reverses => into[before..].reverse(),
            Wrong::HandsOutTwice => {
                let copies: Vec<_> = into[before..]
                    .iter()
                    .filter_map(|r| {
                        let message = Ok(r.message.as_ref().ok()?.clone());
                        let (token, attempt, lease, position) = (r.token, r.attempt, r.lease, r.position);
                        Some(Received { message, token, attempt, lease, position })
                    })
                    .collect();
                into.extend(copies);
            }
            // The last of many, so that something is left to be ready with.
            Wrong::AcksUnseen if into.len() > before + 1 => {
                let unseen = into.pop().map(|r| r.token);
                self.inner.ack(unseen.as_slice());
            }
            _ => {}
        }
        polled
    }

    fn ack(&self, tokens: &[AckToken]) -> AckReport {
        match self.fault {
            Wrong::AcksNothing => AckReport::default(),
            Wrong::HidesLateAnswers => {
                self.inner.ack(tokens);
                AckReport::default()
            }
            _ => self.inner.ack(tokens),
        }
    }

    fn settle(&self, answers: Vec<Answer>) -> Settled {
        let answers = answers
            .into_iter()
            .filter_map(|answer| match answer {
                Answer::Release(token) if self.fault == Wrong::AcksAllReleases => {
                    self.inner.ack(&[token]);
                    None
                }
                Answer::Retry(token, _) if self.fault == Wrong::RetriesAtOnce => {
                    Some(Answer::Retry(token, Duration::ZERO))
                }
                other => Some(other),
            })
            .collect();
        self.inner.settle(answers)
    }

    fn holds(&self, token: AckToken) -> bool {
        self.inner.holds(token)
    }

    async fn flush(&self) -> Result<()> {
        self.inner.flush().await
    }

    fn set_paused(&self, paused: bool) {
        if self.fault != Wrong::NeverPauses {
            self.inner.set_paused(paused);
        }
    }

    async fn stop(&self) {
        self.inner.stop().await;
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.inner.close(deadline).await
    }
}

#[derive(Debug)]
struct WrongProducer {
    inner: Arc<dyn Producer>,
    fault: Wrong,
}

/// What is left of a message that loses its properties, its key perhaps too.
fn reduced(message: &Message, fault: Wrong) -> Message {
    let copy = Message::new(message.payload().clone()).with_headers(message.headers().clone());
    match message.get_key() {
        Some(key) if fault != Wrong::LosesKeys => copy.key(key.clone()),
        _ => copy,
    }
}

#[async_trait]
impl Producer for WrongProducer {
    fn capabilities(&self) -> Arc<Capabilities> {
        let mut capabilities = (*self.inner.capabilities()).clone();
        capabilities.priority |= self.fault == Wrong::Pretends;
        Arc::new(capabilities)
    }

    fn send(&self, batch: Vec<Message>, done: Completion) {
        match self.fault {
            Wrong::AcceptsUnsent => {
                // All are accepted, and the last of each batch is lost.
                let kept = batch[..batch.len() - 1].to_vec();
                if !kept.is_empty() {
                    self.inner.send(kept, Completion::new(batch.len() - 1).0);
                }
                done.accept_all();
            }
            Wrong::SendsTwice => {
                self.inner.send(batch.clone(), Completion::new(batch.len()).0);
                self.inner.send(batch, done);
            }
            Wrong::HidesFailures => {
                let count = batch.len();
                self.inner.send(batch, Completion::new(count).0);
                (0..count).for_each(|index| done.accept(index, Receipt::accepted()));
            }
            Wrong::TypesToText => {
                let text = |(name, value): (&str, &HeaderValue)| (name.to_owned(), format!("{value:?}"));
                let texts = batch.into_iter().map(|m| {
                    let headers = m.headers().iter().map(text).collect();
                    m.with_headers(headers)
                });
                self.inner.send(texts.collect(), done);
            }
            Wrong::LosesKeys | Wrong::IgnoresDelays | Wrong::Pretends => {
                self.inner.send(batch.iter().map(|m| reduced(m, self.fault)).collect(), done);
            }
            _ => self.inner.send(batch, done),
        }
    }

    async fn close(&self, deadline: Instant) -> CloseReport {
        self.inner.close(deadline).await
    }
}
