//! Polling: long polls of ten, one while the queue is empty, more while they come back full.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::config::Builder;
use aws_sdk_sqs::types::Message as Native;
use queue_core::{AckToken, Error, ErrorKind, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::answers::{Place, Verb};
use crate::config::{POLL_GRACE, timeout_of_one};
use crate::consumer::{Buffered, Shared, State};
use crate::convert;
use crate::error::Words;
use crate::hops;
use crate::lease::Lease;

/// The most messages of one poll.
const MAX_MESSAGES: usize = 10;
/// How often in a row a refusal must come before it is final: a new queue or a rotated key may be a moment late.
const FINAL: u32 = 5;
/// The pause after a failed poll: from, to.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// The most that a poll may take beyond its wait, where the broker is slow: what other clients have for all requests.
const MAX_GRACE: Duration = Duration::from_secs(60);
/// How often leases are looked after: between these, else four times a lease.
const LOOK: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Room for messages that a poll under way may bring; given back when the poll ends, however it ends.
struct Reserved {
    shared: Arc<Shared>,
    count: usize,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.shared.state.lock().reserved -= self.count;
    }
}

/// How a poll ended.
struct Polled {
    asked: usize,
    /// How much longer than its wait it took, and how much it had.
    over: Duration,
    grace: Duration,
    result: Result<usize>,
}

/// How much longer than its wait the next poll may take, after one that took so much.
///
/// The messages of a poll that is given up stay away for their lease, and the broker counts them as delivered. So a broker
/// that is slow gets more time, or the same messages, first in line, would be lost again and again. Not beyond their lease: what
/// comes after it is lost all the same.
fn next_grace(grace: Duration, over: Duration, lease: Duration) -> Duration {
    (2 * over).max(grace / 2).min(lease.min(MAX_GRACE)).max(POLL_GRACE)
}

/// Polls until the receiver is stopped and the last poll has ended.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut polls: JoinSet<Polled> = JoinSet::new();
    let mut target = 1;
    let mut refused = 0;
    let mut pause = PAUSE.0;
    let mut grace = POLL_GRACE;
    let mut resume: Option<Instant> = None;
    let every = (shared.lease / 4).clamp(LOOK.0, LOOK.1);
    let mut look = Instant::now() + every;
    loop {
        let down = shared.link.is_down();
        if resume.is_none_or(|at| at <= Instant::now()) {
            resume = None;
            while !down && polls.len() < target {
                let Some(reserved) = reserve(&shared) else { break };
                polls.spawn(poll(reserved, grace));
            }
        }
        if polls.is_empty() && shared.state.lock().stopped {
            break;
        }
        let mut wake = resume.map_or(look, |at| at.min(look));
        if down {
            wake = wake.min(Instant::now() + LOOK.0);
        }
        tokio::select! {
            () = shared.polls.notified() => {}
            () = sleep_until(wake) => {}
            Some(ended) = polls.join_next() => match ended {
                Ok(Polled { asked, over, result: Ok(count), .. }) => {
                    refused = 0;
                    if count == 0 || !over.is_zero() {
                        // One that had not to wait says nothing of those that have.
                        grace = next_grace(grace, over, shared.lease);
                    }
                    pause = PAUSE.0;
                    target = match count {
                        0 => 1,
                        _ if count == asked => (target * 2).min(shared.max_polls),
                        _ => target,
                    };
                }
                Ok(Polled { grace: had, result: Err(error), .. }) => {
                    target = 1;
                    if error.kind() == ErrorKind::Timeout {
                        // Polls beside each other are late together.
                        grace = grace.max(next_grace(grace, had, shared.lease));
                    }
                    resume = Some(Instant::now() + pause);
                    pause = (pause * 2).min(PAUSE.1);
                    // Only what the broker said: credentials that cannot be had for a moment are not refused.
                    let is_final = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unauthorized);
                    if is_final && error.context("code").is_some() {
                        refused += 1;
                    }
                    if refused >= FINAL {
                        shared.end(error);
                    } else {
                        tracing::debug!(address = &*shared.name, %error, "a poll failed");
                    }
                }
                Err(_) => resume = Some(Instant::now() + pause),
            },
        }
        if look <= Instant::now() {
            look = Instant::now() + every;
            shared.look_after_leases();
        }
    }
    shared.polls_ended();
}

/// Reserves room for the next poll, if one is due.
fn reserve(shared: &Arc<Shared>) -> Option<Reserved> {
    let mut state = shared.state.lock();
    if state.stopped || state.paused || state.over.is_some() {
        return None;
    }
    state.leases.sweep();
    let count = state.next_poll(shared);
    state.polls_wait = count == 0;
    if count == 0 {
        return None;
    }
    state.reserved += count;
    drop(state);
    Some(Reserved { shared: shared.clone(), count })
}

async fn poll(reserved: Reserved, grace: Duration) -> Polled {
    let shared = reserved.shared.clone();
    let wait = Duration::from_secs(u64::try_from(shared.wait_seconds).unwrap_or_default());
    let sent = Instant::now();
    let request = shared
        .clients
        .poll
        .receive_message()
        .queue_url(&*shared.url)
        .max_number_of_messages(i32::try_from(reserved.count).unwrap_or(1))
        .wait_time_seconds(shared.wait_seconds)
        .visibility_timeout(convert::whole_seconds(shared.lease))
        .set_message_system_attribute_names(Some(convert::SYSTEM.to_vec()))
        .message_attribute_names("All");
    let result = if grace == POLL_GRACE {
        request.send().await
    } else {
        let longer = Builder::default().timeout_config(timeout_of_one(wait + grace));
        request.customize().config_override(longer).send().await
    };
    let over = sent.elapsed().saturating_sub(wait);
    let asked = reserved.count;
    let result = match shared.link.note("receive", Words::Hidden, result) {
        Ok(output) => Ok(shared.arrived(output.messages.unwrap_or_default(), sent, wait, reserved)),
        Err(error) => Err(shared.queues.failed(&shared.name, error)),
    };
    Polled { asked, over, grace, result }
}

impl Shared {
    /// Takes the messages of a poll; gives them back when nobody wants any.
    fn arrived(self: &Arc<Self>, messages: Vec<Native>, sent: Instant, wait: Duration, reserved: Reserved) -> usize {
        let count = messages.len();
        let mut decoded = Vec::with_capacity(count);
        decoded.extend(messages.into_iter().filter_map(|m| convert::decode(m, self.fifo)));
        let mut state = self.state.lock();
        let mut early = Vec::new();
        for mut message in decoded {
            let mut lease = Lease::granted(message.receipt, message.bytes, self.lease, sent, wait);
            let due = message.message.as_mut().ok().and_then(hops::take_due);
            lease.hopping = due.is_some();
            let token = state.leases.insert(lease);
            if let (Ok(content), Some(due)) = (&mut message.message, due) {
                early.push((token, std::mem::take(content), due));
                continue;
            }
            let (attempt, position) = (message.attempt, message.position);
            state.buffer.push_back(Buffered { message: message.message, token, attempt, position });
        }
        if state.stopped || state.paused {
            state.release_buffered(self.linger);
        }
        let waker = state.waker.take();
        self.wake(state);
        // Only now: the messages have taken the place of the reservation.
        drop(reserved);
        for (token, message, due) in early {
            self.send_on(token, message, due);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        count
    }

    /// Ends the receiver for good.
    fn end(&self, error: Error) {
        let mut state = self.state.lock();
        state.over.get_or_insert(error);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Lets go of leases that ran out, and extends those of buffered messages past their half.
    fn look_after_leases(&self) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let now = Instant::now();
        state.drop_stale(now);
        for token in state.leases.begin_extending(now + self.lease / 2) {
            state.extend(token, self.lease, now, self.linger, None);
        }
        self.wake(guard);
    }

    fn polls_ended(&self) {
        self.state.lock().polls_ended = true;
        self.answers.notify_one();
    }
}

impl State {
    /// How many messages a poll that starts now asks for; none while there is no room for one, or nobody wants more.
    pub(crate) fn next_poll(&self, shared: &Shared) -> usize {
        if !self.asked || self.leases.bytes() >= shared.prefetch_bytes {
            return 0;
        }
        let room = shared.prefetch.saturating_sub(self.leases.len() + self.reserved);
        let count = room.min(MAX_MESSAGES);
        // A request costs the same for one message as for ten: a short one goes only when nothing else is at hand.
        let whole = count == MAX_MESSAGES.min(shared.prefetch);
        let alone = self.reserved == 0 && self.buffer.is_empty();
        if whole || alone { count } else { 0 }
    }

    /// Lets go of leases that ran out, and of messages in the buffer that lost theirs in any way.
    fn drop_stale(&mut self, now: Instant) {
        self.leases.sweep();
        self.buffer.retain(|buffered| self.leases.get(buffered.token, now).is_some());
    }

    /// Gives back what was fetched and not handed out; says how many.
    pub(crate) fn release_buffered(&mut self, linger: Duration) -> usize {
        let (buffer, now) = (std::mem::take(&mut self.buffer), Instant::now());
        buffer.into_iter().filter(|b| self.give_back(b.token, Duration::ZERO, now, linger, None)).count()
    }

    /// Returns a message to the queue; false for a stale token.
    pub(crate) fn give_back(
        &mut self,
        token: AckToken,
        delay: Duration,
        now: Instant,
        linger: Duration,
        report: Option<Place>,
    ) -> bool {
        let Some(lease) = self.leases.take(token, now) else { return false };
        self.outbox.push(token, lease.receipt, Verb::Return(delay), lease.expires, now + linger, report);
        true
    }

    /// Extends a lease; false for a stale token.
    pub(crate) fn extend(
        &mut self,
        token: AckToken,
        time: Duration,
        now: Instant,
        linger: Duration,
        report: Option<Place>,
    ) -> bool {
        let Some(lease) = self.leases.get(token, now) else { return false };
        let (receipt, ends) = (lease.receipt.clone(), lease.expires);
        self.outbox.push(token, receipt, Verb::Extend(time), ends, now + linger, report);
        true
    }
}

#[cfg(test)]
mod tests {
    use queue_core::{Message, Position};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_lost_its_lease_leaves_the_buffer() {
        let mut state = State::default();
        for seconds in [1, 30, 30] {
            let time = Duration::from_secs(seconds);
            let token = state.leases.insert(Lease::granted("r".to_owned(), 1, time, Instant::now(), Duration::ZERO));
            state.buffer.push_back(Buffered {
                message: Ok(Message::new("x")),
                token,
                attempt: 1,
                position: Position::default(),
            });
        }
        // One was refused its extension, another runs out.
        let (refused, held) = (state.buffer[1].token, state.buffer[2].token);
        assert!(state.leases.take(refused, Instant::now()).is_some());
        tokio::time::advance(Duration::from_secs(1)).await;
        state.drop_stale(Instant::now());
        assert_eq!(state.buffer.iter().map(|buffered| buffered.token).collect::<Vec<_>>(), [held]);
        assert_eq!(state.leases.len(), 1);
    }

    #[test]
    fn a_broker_that_is_slow_gets_more_time_and_loses_it_when_it_is_fast_again() {
        let seconds = Duration::from_secs;
        let mut grace = POLL_GRACE;
        let mut graces = Vec::new();
        // Given up three times, then answered after 38 s, 9 s, and at once.
        for over in [5, 10, 20, 38, 9, 0, 0, 0, 0] {
            grace = next_grace(grace, seconds(over), seconds(300));
            graces.push(grace.as_millis());
        }
        assert_eq!(next_grace(seconds(20), seconds(20), seconds(30)), seconds(30), "not beyond the lease");
        assert_eq!(next_grace(POLL_GRACE, POLL_GRACE, seconds(2)), POLL_GRACE, "whatever the lease");
        assert_eq!(graces, [10_000, 20_000, 40_000, 60_000, 30_000, 15_000, 7_500, 5_000, 5_000]);
    }
}
