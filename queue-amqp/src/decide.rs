//! Verdicts that are not simply "the broker has it".

use std::sync::Arc;
use std::task::Context;

use queue_core::{Completion, Error, ErrorKind, Message, Outcome};

use crate::delay::{Ticks, gone};
use crate::error::map;
use crate::flight::{Failure, Origin, State, Verdict, unknown};
use crate::window::{Window, batch_of};

/// What the server calls the exchange without a name when it refuses to write to it.
const DEFAULT_EXCHANGE: &str = "amq.default";

impl Window {
    /// Gives an answered flight its verdict.
    pub(super) fn decide(&mut self, place: usize, verdicts: &mut Vec<Verdict>) {
        let number = self.base + place as u64;
        let flight = &mut self.flights[place];
        if matches!(flight.state, State::Decided) {
            return;
        }
        let state = std::mem::replace(&mut flight.state, State::Decided);
        let (index, returned) = (flight.index, flight.returned.take());
        let Some(batch) = batch_of(&mut self.batches, number) else { return };
        batch.partial = true;
        batch.undecided -= 1;
        let (origin, done) = (batch.origin.clone(), batch.done.share());
        let to = |message: &Message| message.destination().unwrap_or(&origin.address).to_string();
        let (error, message) = match state {
            State::Answered(message, acked) => match (acked, returned) {
                (true, None) => return verdicts.push(Verdict::Accepted(origin, done, index)),
                (_, Some(_)) if is_delayed(&message) => {
                    self.ladder.forget_all();
                    (gone(), Some(self.hand_back(number, message)))
                }
                (_, Some(returned)) => {
                    let (code, text) = *returned;
                    let error = Error::new(ErrorKind::Unroutable, text)
                        .with_operation("send")
                        .with_context("address", to(&message))
                        .with_context("code", code);
                    (error, Some(message))
                }
                (false, None) => {
                    let error = Error::new(ErrorKind::Rejected, "the queue refused the message")
                        .with_operation("send")
                        .with_context("address", to(&message));
                    (error, Some(message))
                }
            },
            State::Waiting(message) => {
                let why = "the connection broke before the message was sent";
                (Error::new(ErrorKind::Connection, why).with_operation("send"), Some(message))
            }
            State::Lost(message) | State::Confirming(_, message) => {
                (unknown(None), Some(self.hand_back(number, message)))
            }
            State::Writing(_) | State::Decided => (unknown(None), None),
        };
        verdicts.push(Verdict::Failed(Box::new(Failure { origin, done, index, error, message })));
    }

    /// Fails what the client does not have yet.
    pub(crate) fn fail_waiting(&mut self, error: &Error, verdicts: &mut Vec<Verdict>) {
        for place in self.published..self.flights.len() {
            self.fail_one_waiting(place, error, verdicts);
        }
    }

    fn fail_one_waiting(&mut self, place: usize, error: &Error, verdicts: &mut Vec<Verdict>) {
        match std::mem::replace(&mut self.flights[place].state, State::Decided) {
            State::Waiting(message) => self.refuse(place, error.clone(), message, verdicts),
            other => self.flights[place].state = other,
        }
    }

    /// Gives every message of a producer a verdict now; answers how many the broker may have. Their confirmations are
    /// still waited for, since the client keeps those that nobody takes.
    pub(crate) fn let_go(&mut self, origin: &Arc<Origin>, error: &Error, verdicts: &mut Vec<Verdict>) -> usize {
        let mut left = 0;
        let mut place = 0;
        let number_of = |place: usize, base: u64| base + place as u64;
        while place < self.flights.len() {
            if self.origin(place).is_some_and(|of| Arc::ptr_eq(of, origin)) {
                self.fail_one_waiting(place, &error.clone().with_outcome(Outcome::NotSent), verdicts);
                let flight = &self.flights[place];
                if !matches!(flight.state, State::Decided)
                    && let Some(batch) = batch_of(&mut self.batches, number_of(place, self.base))
                {
                    left += 1;
                    verdicts.push(Verdict::failed(batch, flight.index, error.clone(), None));
                }
            }
            place += 1;
        }
        // The later verdicts go to nobody: the first one counts.
        let nobody = Origin::new(origin.address.clone(), origin.require_route);
        for batch in self.batches.iter_mut().filter(|batch| Arc::ptr_eq(&batch.origin, origin)) {
            nobody.take_off(batch.undecided as usize);
            batch.origin = nobody.clone();
            batch.partial = true;
        }
        left
    }

    /// Gives up everything: the channel is gone. Looks once more, for messages to hand back.
    pub(crate) fn fail(&mut self, cx: &mut Context<'_>) -> Vec<Verdict> {
        for place in 0..self.published {
            self.look(place, cx);
        }
        let culprit = self.culprit();
        let mut verdicts = Vec::with_capacity(self.flights.len());
        let cause = self.broken.take().map(|e| map(&e, "send"));
        for place in 0..self.flights.len() {
            self.decide(place, &mut verdicts);
        }
        // The broker took nothing from the message on that it closed the channel for.
        if let (Some((done, index)), Some(cause)) = (culprit, &cause) {
            let mut behind = false;
            for verdict in &mut verdicts {
                let Verdict::Failed(failure) = verdict else { continue };
                let Failure { origin, done: of, index: at, error, message } = &mut **failure;
                let no_right = cause.kind() == ErrorKind::Unauthorized;
                if behind && no_right && message.as_ref().is_some_and(|m| is_named(origin, m, cause.message())) {
                    // It would be the next.
                    *error = cause.clone().with_retryable(false);
                } else if behind {
                    *error = Error::new(ErrorKind::Connection, "the channel was closed before").with_operation("send");
                } else if Arc::ptr_eq(of, &done) && *at == index {
                    *error = cause.clone().with_retryable(false);
                    if cause.kind() == ErrorKind::NotFound && message.as_ref().is_some_and(is_delayed) {
                        self.ladder.forget_all();
                        *error = gone().with_source(cause.clone());
                    }
                    behind = true;
                } else if error.outcome() == Outcome::Unknown {
                    *error = unknown(Some(cause));
                }
            }
        } else {
            for verdict in &mut verdicts {
                if let Verdict::Failed(failure) = verdict
                    && failure.error.outcome() == Outcome::Unknown
                {
                    failure.error = unknown(cause.as_ref());
                }
            }
        }
        self.base += self.flights.len() as u64;
        self.flights.clear();
        self.batches.clear();
        self.slots.clear();
        self.next_batch = 0;
        (self.answered, self.published, self.writing) = (0, 0, 0);
        (self.in_client, self.bytes) = (0, 0);
        verdicts
    }

    /// The message that the broker closed the channel for: the first to the exchange that it names (it does not exist, or
    /// may not be written to), or of the size that it says is too large.
    fn culprit(&mut self) -> Option<(Arc<Completion>, u32)> {
        let lapin::ErrorKind::ProtocolError(refusal) = self.broken.as_ref()?.kind() else { return None };
        let text = refusal.get_message().as_str().to_owned();
        let place = (0..self.published).find(|place| {
            let State::Lost(message) = &self.flights[*place].state else { return false };
            let of_size = || text.contains(&format!("message size {} ", message.payload().len()));
            self.origin(*place).is_some_and(|origin| is_named(origin, message, &text)) || of_size()
        })?;
        let index = self.flights[place].index;
        let batch = batch_of(&mut self.batches, self.base + place as u64)?;
        Some((batch.done.share(), index))
    }
}

/// Whether it goes by way of the ladder.
fn is_delayed(message: &Message) -> bool {
    message.get_delay().and_then(Ticks::of).is_some()
}

/// Whether a refusal names the exchange that a message goes to.
fn is_named(origin: &Origin, message: &Message, text: &str) -> bool {
    let to = message.destination().unwrap_or(&origin.address);
    let exchange = match message.get_delay().and_then(Ticks::of) {
        Some(ticks) => &ticks.exchange(),
        None if to.is_topic() => to.name(),
        None => DEFAULT_EXCHANGE,
    };
    // Virtual host and user stand in quotes too.
    text.contains(&format!("exchange '{exchange}'"))
}

#[cfg(test)]
mod tests {
    use queue_core::Address;

    use super::*;

    #[test]
    fn a_refusal_names_the_exchange_and_not_what_else_has_its_name() {
        let names = |topic: &str, text: &str| {
            let origin = Origin::new(Address::topic(topic).unwrap(), false);
            is_named(&origin, &Message::new("x"), text)
        };
        let missing = "NOT_FOUND - no exchange 'missing' in vhost 'orders'";
        assert!(names("missing", missing));
        assert!(!names("orders", missing), "the virtual host");
        let refused = "ACCESS_REFUSED - write access to exchange 'bills' in vhost '/' refused for user 'orders'";
        assert!(names("bills", refused));
        assert!(!names("orders", refused), "the user");
        let queue = Origin::new(Address::queue("orders").unwrap(), false);
        let refused = "ACCESS_REFUSED - write access to exchange 'amq.default' in vhost 'orders' refused for user 'x'";
        assert!(is_named(&queue, &Message::new("x"), refused));
        assert!(!is_named(&queue, &Message::new("x"), missing));
    }
}
