//! Messages that may have killed a process: each is handed out while nothing else is.
//!
//! A broker that counts losses counts them for all that a lost process had fetched, so a count alone says nothing about
//! one message. The first count that is too high only makes a copy, which is marked by its attempt and begins at no
//! losses. Marked ones are handed out alone; those that were lost and are not the next become copies again before. So what
//! gathers losses from then on was handed out at each of them, and nothing beside it. Where the library itself notes the
//! attempts with the broker, the notes of the others are set back instead.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::answer::{Hopeless, is_hopeless};
use super::{COPY_RETRY_MIN, Copying, Held, Inbox, Run, SPARE_DELIVERIES};
use crate::capability::{DeliveryCount, RetryVia};
use crate::consumer::{AckToken, Answer, Received};
use crate::dead_letter::{self, Reason};
use crate::delivery::hold;
use crate::error::{Error, ErrorKind, Result};
use crate::outbox::Outbox;
use crate::receiver::copier;

/// How long no other suspect has to arrive before the first of them is handed out: they were fetched together, and come
/// back one by one.
const GATHERED: Duration = Duration::from_millis(100);
/// How often that is waited for.
const GATHERINGS: usize = 10;

/// How those are told apart that were lost together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Telling {
    /// A copy begins anew.
    Copies,
    /// What is noted of each can be set.
    Notes,
}

/// A message that may have killed a process.
#[derive(Debug)]
pub(super) struct Suspect {
    held: Held,
    /// Since it is marked.
    losses: u32,
}

impl Suspect {
    pub(super) fn into_held(self) -> Held {
        self.held
    }
}

impl Suspect {
    fn rank(&self) -> Rank {
        let message = &self.held.message;
        Rank { losses: self.losses, name: Reverse((message.get_id().map(str::to_owned), message.payload().clone())) }
    }
}

/// Which suspect is handed out first: the one that was lost most often. Of those that were lost together, one of which was
/// out, it is the same one in every process, in whatever order they arrive.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    losses: u32,
    name: Reverse<(Option<String>, Bytes)>,
}

/// What a fetch does while there are suspects.
pub(super) enum Alone {
    /// This one is handed out, and nothing else.
    HandOut(Run),
    Wait,
    Failed(Error),
    /// There are none any more.
    Over,
}

impl Inbox {
    /// How suspects are told apart. In order they are not: a copy would come behind others of its key, and what is kept
    /// back would hold up its own.
    fn telling(&self) -> Option<Telling> {
        match (self.capabilities.delivery_count, self.capabilities.retry_via) {
            _ if self.per_key() => None,
            (DeliveryCount::Losses, RetryVia::InPlace) => Some(Telling::Notes),
            (DeliveryCount::Losses | DeliveryCount::Receives, RetryVia::Copy | RetryVia::Broker) => {
                self.has_notes().then_some(Telling::Copies)
            }
            _ => None,
        }
    }

    /// The attempt by which a message is marked: one that no failure can lead to.
    fn mark(&self) -> u32 {
        self.config.max_deliveries.saturating_add(1)
    }

    /// The last attempt that is handed out like any other.
    pub(super) fn last_attempt(&self) -> u32 {
        self.config.max_deliveries.saturating_add(if self.telling().is_some() { 0 } else { SPARE_DELIVERIES })
    }

    /// Takes a message whose count is above that; `noted` is the attempt that it says itself.
    pub(super) fn suspect(self: &Arc<Self>, item: Received, noted: u32) {
        let telling = self.telling();
        let marked = match telling {
            Some(Telling::Notes) => self.mark(),
            _ => noted,
        };
        let losses = item.attempt.saturating_sub(marked);
        let Some(held) = self.hold_alone(item) else { return };
        if telling.is_none() || losses >= SPARE_DELIVERIES && marked >= self.mark() {
            self.give_up(Held { laneless: true, ..held });
        } else if marked < self.mark() {
            self.copy_marked(held);
        } else {
            self.with_suspects(|suspects| suspects.push(Suspect { held, losses }));
            if !self.is_running() {
                self.release_local();
            }
        }
    }

    fn give_up(self: &Arc<Self>, held: Held) {
        let why = format!("delivered {} times without an answer", held.attempt - 1);
        self.dead_letter(held, Reason::text(why));
    }

    /// Whether messages may carry the notes of copies.
    pub(super) fn has_notes(&self) -> bool {
        self.copies.is_some() || self.marks_to.is_some()
    }

    /// A copy that no loss was counted for; one that can never be sent is handed out as it is.
    fn copy_marked(self: &Arc<Self>, held: Held) {
        self.copying.fetch_add(1, Ordering::AcqRel);
        let copying = Copying(self.clone());
        self.spawn(async move |inbox| {
            let _copying = copying;
            loop {
                let error = match inbox.marker().await {
                    Ok(outbox) => {
                        let copy = dead_letter::retry(&held.message, inbox.mark(), None);
                        return inbox.copy_until_confirmed(held, &outbox, copy, Hopeless::HandOut).await;
                    }
                    Err(error) => error,
                };
                tracing::debug!(%error, source = %inbox.source, "no copies of suspects can be sent");
                if is_hopeless(&error) || !inbox.is_running() {
                    return inbox.hand_out_unmarked(held);
                }
                if inbox.pause_copy(COPY_RETRY_MIN, &held).await {
                    inbox.settle(Answer::Release(held.token));
                    return inbox.finish(&held);
                }
            }
        });
    }

    async fn marker(&self) -> Result<Arc<Outbox>> {
        let marker = match (&self.copies, &self.marks_to) {
            (Some(copies), _) => copies,
            (None, Some(to)) => self.marker.get_or_try_init(|| copier(&self.client, to.clone())).await?,
            (None, None) => return Err(Error::new(ErrorKind::Internal, "no address for copies")),
        };
        Ok(marker.0.clone())
    }

    /// As where no copies are made.
    pub(super) fn hand_out_unmarked(self: &Arc<Self>, held: Held) {
        match held.attempt <= self.config.max_deliveries.saturating_add(SPARE_DELIVERIES) {
            true => self.hand_out(held),
            false => self.give_up(held),
        }
    }

    /// Fetches what is there and keeps it back, and hands out one suspect when nothing else is out.
    pub(super) fn poll_alone(self: &Arc<Self>, cx: &mut Context<'_>) -> Alone {
        while let Poll::Ready(fetched) = self.poll_consumer(cx, usize::MAX) {
            match fetched {
                Ok(Some(run)) => {
                    let fetch = run.fetch;
                    (run.next..).zip(run.items).for_each(|(index, item)| self.hand_out(hold(&fetch, index, item)));
                }
                Ok(None) => {}
                Err(error) => return Alone::Failed(error),
            }
        }
        let gone = self.with_suspects(|suspects| {
            suspects.extract_if(.., |suspect| !self.consumer.holds(suspect.held.token)).collect::<Vec<_>>()
        });
        gone.iter().for_each(|suspect| self.finish(&suspect.held));
        if self.secluded.load(Ordering::Acquire) {
            // One is out: what came meanwhile is not to be lost with it once more. What would have been handed out before
            // it is more likely to have been the reason of its losses, which are not forgotten.
            let out = self.out.lock();
            self.clear(|suspect| out.as_ref().is_none_or(|out| suspect.rank() < *out), None);
        }
        if !self.is_alone() {
            return Alone::Wait;
        }
        let Some((token, attempt)) = self.next_suspect() else {
            self.secluded.store(false, Ordering::Release);
            return Alone::Over;
        };
        let settled = self.settled.lock().take() == Some(token);
        // Some may have come since.
        let cleared = self.clear(|suspect| suspect.held.token != token, Some((token, attempt)));
        if settled && !cleared {
            let taken = self.with_suspects(|suspects| suspects.extract_if(.., |s| s.held.token == token).next());
            if let Some(suspect) = taken {
                *self.out.lock() = Some(suspect.rank());
                self.secluded.store(true, Ordering::Release);
                return Alone::HandOut(suspect.held.into_run());
            }
        }
        self.settle_before(token);
        Alone::Wait
    }

    fn next_suspect(&self) -> Option<(AckToken, u32)> {
        let suspects = self.suspects.lock();
        let worst = suspects.iter().rev().max_by_key(|suspect| suspect.rank())?;
        Some((worst.held.token, worst.held.attempt))
    }

    /// Clears others of the losses that they had beside the next; whether there were any.
    fn clear(self: &Arc<Self>, is_other: impl Fn(&Suspect) -> bool, next: Option<(AckToken, u32)>) -> bool {
        if self.telling() == Some(Telling::Notes) {
            return self.with_suspects(|suspects| {
                let mut cleared = false;
                for suspect in suspects.iter_mut().filter(|suspect| is_other(suspect)) {
                    // As if it had not been handed out before: the note counts the delivery that is under way.
                    self.consumer.note_attempt(suspect.held.token, self.config.max_deliveries);
                    cleared |= suspect.losses > 0;
                    suspect.losses = 0;
                }
                if let Some((token, attempt)) = next {
                    self.consumer.note_attempt(token, attempt);
                }
                cleared
            });
        }
        let lost = self.with_suspects(|suspects| {
            suspects.extract_if(.., |suspect| suspect.losses > 0 && is_other(suspect)).collect::<Vec<_>>()
        });
        let cleared = !lost.is_empty();
        lost.into_iter().for_each(|suspect| self.copy_marked(suspect.held));
        cleared
    }

    /// Changes the suspects, and keeps their number beside them.
    fn with_suspects<T>(&self, change: impl FnOnce(&mut Vec<Suspect>) -> T) -> T {
        let mut suspects = self.suspects.lock();
        let changed = change(&mut suspects);
        self.suspected.store(suspects.len(), Ordering::Release);
        changed
    }

    pub(super) fn take_suspects(&self) -> Vec<Suspect> {
        self.with_suspects(std::mem::take)
    }

    /// Has the broker take the answers given so far: what is handed out next may end the process, and those with it.
    fn settle_before(self: &Arc<Self>, token: AckToken) {
        self.copying.fetch_add(1, Ordering::AcqRel);
        let copying = Copying(self.clone());
        let is_first = !self.secluded.load(Ordering::Acquire);
        self.spawn(async move |inbox| {
            let _copying = copying;
            for _ in 0..if is_first { GATHERINGS } else { 0 } {
                let before = inbox.suspected.load(Ordering::Acquire);
                sleep(GATHERED).await;
                if inbox.suspected.load(Ordering::Acquire) == before {
                    break;
                }
            }
            inbox.drained(|inbox| inbox.copies_under_way().saturating_sub(1)).await;
            if let Err(error) = inbox.flush_answers().await {
                tracing::debug!(%error, source = %inbox.source, "what may end the process is handed out with answers under way");
            }
            *inbox.settled.lock() = Some(token);
        });
    }

    /// Whether a suspect may be handed out now.
    pub(super) fn is_alone(&self) -> bool {
        self.copies_under_way() == 0 && self.handed_out() == 0
    }

    /// Copies that may be confirmed any moment; those that wait for another try may wait for long.
    fn copies_under_way(&self) -> usize {
        let pausing = self.pausing.load(Ordering::Acquire);
        self.copying.load(Ordering::Acquire).saturating_sub(pausing)
    }

    pub(super) fn wake_if_secluded(&self) {
        if self.is_secluded() {
            self.idle.notify_waiters();
            self.poller.wake();
        }
    }

    /// Whether what is fetched is kept back.
    pub(super) fn is_secluded(&self) -> bool {
        self.suspected.load(Ordering::Acquire) > 0 || self.secluded.load(Ordering::Acquire)
    }

    /// How many messages somebody works on, of those that are not answered.
    fn handed_out(&self) -> usize {
        // In the order in which they lose messages to each other, so that none is counted twice.
        let ready = self.local_ready.load(Ordering::Acquire);
        let kept = ready
            + self.deferred.load(Ordering::Acquire)
            + self.pausing.load(Ordering::Acquire)
            + self.suspected.load(Ordering::Acquire);
        self.unanswered.load(Ordering::Acquire).saturating_sub(kept)
    }
}
