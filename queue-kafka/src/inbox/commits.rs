//! Positions that are to be committed, and what the broker answered.

use queue_core::{Error, ErrorKind};

use super::{Inbox, Mark};

impl Inbox {
    /// Why the last commit failed.
    pub(crate) fn commit_error(&self) -> Option<Error> {
        self.state.lock().commit_error.clone()
    }

    /// Why acknowledged messages come again although everything was committed.
    pub(crate) fn cut_off(&self) -> Option<Error> {
        let state = self.state.lock();
        let first = state.cut_off.first()?;
        let why =
            "acknowledged messages come again: a commit has no room for so many that stand beyond one that is not";
        Some(Error::new(ErrorKind::TooLarge, why).with_context("topic", &self.topic).with_context("partition", first))
    }

    /// What came of the commit with which the partitions went.
    pub(crate) fn parted(&self, due: &[Mark], result: &Result<(), Error>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.commit_error = result.as_ref().err().cloned();
        match result {
            Ok(()) => state.stands(due),
            Err(error) => state.fail_flushes(due, error),
        }
        state.settle_flushes();
    }

    /// What is to be committed now.
    pub(crate) fn due(&self) -> Vec<Mark> {
        self.state.lock().due()
    }

    /// What the broker answered to a commit.
    pub(crate) fn committed(&self, marks: &[Mark], answer: Result<(), Error>) {
        let mut state = self.state.lock();
        if answer.is_ok() {
            state.stands(marks);
        }
        if !marks.iter().any(|mark| state.slot(mark.partition, mark.epoch).is_some()) {
            // All of it went elsewhere meanwhile, and was committed with that.
            return;
        }
        state.commit_error = match answer {
            Ok(()) => {
                for mark in marks {
                    if let Some(slot) = state.slot(mark.partition, mark.epoch) {
                        slot.committed = mark.version;
                    }
                }
                None
            }
            Err(error) => Some(error),
        };
        state.settle_flushes();
        state.let_through();
        let waker = if state.buffer.is_empty() || state.paused { None } else { state.waker.take() };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
