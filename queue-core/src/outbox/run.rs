//! The block that single sends share: one allocation for many of them, close together in memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Outbox;
use crate::block::{Block, SlotRef};

/// Most messages of a shared block: each has a bit in it.
const MAX: u32 = 64;
/// A message that was sent later than the first of its block gives up with it: at most this part of its time too late.
const LATE: u32 = 1024;

/// What is in the making.
#[derive(Debug, Default)]
pub(super) struct Run {
    block: Option<Arc<Block>>,
    used: u32,
}

impl Run {
    /// Nothing more comes into this block: it is done when its last message is.
    pub(super) fn end(&mut self) {
        if let Some(block) = self.block.take() {
            block.seal();
        }
    }

    /// The same, if its time is over.
    pub(super) fn end_at(&mut self, now: Instant) {
        if self.block.as_ref().is_some_and(|block| block.deadline() <= now) {
            self.end();
        }
    }
}

impl Outbox {
    /// A place for a message that is sent alone, and holds this window.
    pub(super) fn place(self: &Arc<Self>, cost: usize, deadline: Instant) -> SlotRef {
        let mut run = self.run.lock();
        let late = self.config.deadline / LATE;
        let fits = run.block.as_ref().is_some_and(|block| {
            let in_time = deadline <= block.deadline() && block.deadline() <= deadline + late;
            in_time && run.used < block.len && block.cost() == cost
        });
        if !fits {
            // As many as the last had, and more: those who send one by one get a small one.
            let len = (run.used * 2).clamp(1, MAX);
            run.end();
            let late = if len > 1 { late } else { Duration::ZERO };
            let block = Block::new(len as usize, cost, deadline + late, Some(self.clone()));
            // Before its first message is handed over: its verdict may come at once.
            self.watch_locked(&mut self.state.lock(), &block);
            *run = Run { block: Some(block), used: 0 };
        }
        let used = run.used;
        run.used += 1;
        match &run.block {
            Some(block) => {
                block.hand(used as usize + 1);
                block.slot_ref(used as usize)
            }
            // It was made above.
            None => unreachable!("a block is in the making"),
        }
    }

    /// Ends the block in the making, so that it is done when its last message is.
    pub(super) fn end_run(&self) {
        self.run.lock().end();
    }
}
