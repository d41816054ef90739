//! Handlers that are done before a task for them would have started.

use std::time::Duration;

/// What a handler may take to be light. A task of its own costs about a tenth of it, and the message behind it waits as long.
const LIGHT: Duration = Duration::from_micros(10);
/// Handlers between two tries whether they are light: from, to.
const TRY: (u32, u32) = (64, 4096);

/// Tells whether handlers are so light that the worker's own task runs them: they wait for nothing and end at once.
///
/// One of many is tried. As long as they are light, all are; the first that is not goes on in a task of its own, and those
/// behind it start in theirs, so that handlers which compute use all cores.
#[derive(Debug)]
pub(crate) struct Light {
    /// Handlers until the next try.
    left: u32,
    /// Between tries, as long as they fail.
    every: u32,
}

impl Light {
    pub(crate) fn new() -> Self {
        Self { left: 0, every: TRY.0 }
    }

    /// Whether the next handler is tried here.
    pub(crate) fn is_tried(&mut self) -> bool {
        let is_tried = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_tried
    }

    /// One that was tried ended at once.
    pub(crate) fn ended(&mut self, took: Duration) {
        if took > LIGHT {
            self.waits();
        } else {
            self.every = TRY.0;
        }
    }

    /// One that was tried waits for something.
    pub(crate) fn waits(&mut self) {
        self.left = self.every;
        self.every = (self.every * 2).min(TRY.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many handlers are tried.
    fn tried(light: &mut Light, handlers: u32, end: impl Fn(&mut Light)) -> u32 {
        let mut tried = 0;
        for _ in 0..handlers {
            if light.is_tried() {
                tried += 1;
                end(light);
            }
        }
        tried
    }

    #[test]
    fn light_ones_are_all_tried_and_others_seldom() {
        let mut light = Light::new();
        let quick = |light: &mut Light| light.ended(Duration::from_micros(1));
        assert_eq!(tried(&mut light, 1000, quick), 1000);
        assert!(tried(&mut light, 100_000, Light::waits) < 32);
        assert!(tried(&mut light, 100_000, |light| light.ended(Duration::from_millis(1))) < 32);
        // They become light: found out within a few thousand.
        assert!(tried(&mut light, 10_000, quick) > 5_000);
    }
}
