//! Messages that may have killed a process: each is handed out while nothing else is.
//!
//! A broker that counts losses counts them for all that a lost process had fetched, so a count alone says nothing about
//! one message. The first count that is too high only makes a copy, which is marked by its attempt and begins at no
//! losses. Marked ones are handed out alone; those that were lost and are not the next become copies again before. So what
//! gathers losses from then on was handed out at each of them, and nothing beside it. Where the library itself notes the
//! attempts with the broker, the notes of the others are set back instead.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use super::answer::Hopeless;
use super::{Copying, Held, Inbox, Run, SPARE_DELIVERIES};
use crate::capability::{DeliveryCount, RetryVia};
use crate::consumer::{AckToken, Received};
use crate::dead_letter::{self, Reason};
use crate::delivery::hold;
use crate::error::{Error, ErrorKind, Result};
use crate::outbox::Outbox;
use crate::receiver::copier;

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
            self.suspected.fetch_add(1, Ordering::AcqRel);
            self.suspects.lock().push(Suspect { held, losses });
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
            match inbox.marker().await {
                Ok(outbox) => {
                    let copy = dead_letter::retry(&held.message, inbox.mark(), None);
                    inbox.copy_until_confirmed(held, &outbox, copy, Hopeless::HandOut).await;
                }
                Err(error) => {
                    tracing::debug!(%error, source = %inbox.source, "no copies of suspects can be sent");
                    inbox.hand_out_unmarked(held);
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
        let mut suspects = self.suspects.lock();
        suspects.retain(|suspect| {
            let holds = self.consumer.holds(suspect.held.token);
            if !holds {
                self.suspected.fetch_sub(1, Ordering::AcqRel);
                self.finish(&suspect.held);
            }
            holds
        });
        if !self.is_alone() {
            return Alone::Wait;
        }
        // The one that was lost most often, and of those the first.
        let worst = suspects.iter().rev().enumerate().max_by_key(|(_, s)| s.losses).map(|(back, _)| back);
        let Some(worst) = worst.map(|back| suspects.len() - 1 - back) else {
            self.secluded.store(false, Ordering::Release);
            return Alone::Over;
        };
        let next = suspects.remove(worst);
        if self.settled.lock().take() == Some(next.held.token) {
            drop(suspects);
            self.suspected.fetch_sub(1, Ordering::AcqRel);
            self.secluded.store(true, Ordering::Release);
            return Alone::HandOut(next.held.into_run());
        }
        let token = next.held.token;
        let mut lost = Vec::new();
        if self.telling() == Some(Telling::Notes) {
            // As if they had not been handed out before.
            suspects.iter().for_each(|s| self.consumer.note_attempt(s.held.token, self.config.max_deliveries));
            self.consumer.note_attempt(token, next.held.attempt);
        } else {
            lost = suspects.extract_if(.., |suspect| suspect.losses > 0).collect();
        }
        suspects.insert(0, next);
        drop(suspects);
        self.suspected.fetch_sub(lost.len(), Ordering::AcqRel);
        lost.into_iter().for_each(|suspect| self.copy_marked(suspect.held));
        self.settle_before(token);
        Alone::Wait
    }

    /// Has the broker take the answers given so far: what is handed out next may end the process, and those with it.
    fn settle_before(self: &Arc<Self>, token: AckToken) {
        let copies = self.copying.fetch_add(1, Ordering::AcqRel);
        let copying = Copying(self.clone());
        self.spawn(async move |inbox| {
            let _copying = copying;
            if copies > 0 {
                inbox.drained(|inbox| inbox.copying.load(Ordering::Acquire) - 1).await;
            }
            // Where it fails the connection is lost, and with it what was held.
            let _ = inbox.flush_answers().await;
            *inbox.settled.lock() = Some(token);
        });
    }

    /// Whether a suspect may be handed out now.
    pub(super) fn is_alone(&self) -> bool {
        self.copying.load(Ordering::Acquire) == 0 && self.handed_out(self.suspected.load(Ordering::Acquire)) == 0
    }

    /// Whether what is fetched is kept back.
    pub(super) fn is_secluded(&self) -> bool {
        self.suspected.load(Ordering::Acquire) > 0 || self.secluded.load(Ordering::Acquire)
    }

    /// How many messages somebody works on, of those that are not answered.
    fn handed_out(&self, suspects: usize) -> usize {
        let kept = suspects + self.deferred.load(Ordering::Acquire) + self.local_ready.load(Ordering::Acquire);
        self.unanswered.load(Ordering::Acquire).saturating_sub(kept)
    }
}
