//! Handlers that are done before a task for them would have started.

use std::time::{Duration, Instant};

/// What a handler may take to be light. Another task for it costs about a twentieth of that, and the message behind it waits as long.
const LIGHT: Duration = Duration::from_micros(10);
/// What nothing but a handler takes, with the fetch of what it works on in it.
const SURE: Duration = Duration::from_millis(1);
/// How long the worker's own task runs handlers before others may run: to change tasks costs as much as dozens of them.
const TURN: Duration = Duration::from_micros(500);
/// Handlers between two tries whether they are light: from, to.
const TRY: (u32, u32) = (64, 4096);

/// Tells whether handlers are so light that the worker's own task runs them: they wait for nothing and end at once.
///
/// One of many is tried. As long as they are light, all are; the first that is not goes on in another task, and those
/// behind it start in theirs, so that handlers which compute use all cores.
#[derive(Debug)]
pub(crate) struct Light {
    /// Handlers until the next try.
    left: u32,
    /// Between tries, as long as they fail.
    every: u32,
    /// When the one before ended, if nothing was waited for since: a look at the clock costs as much as many a handler.
    last: Option<Instant>,
    /// Whether the one that is tried is timed alone.
    alone: bool,
    /// Since when others have waited.
    turn: Option<Instant>,
}

impl Light {
    pub(crate) fn new() -> Self {
        Self { left: 0, every: TRY.0, last: None, alone: true, turn: None }
    }

    /// Whether the next handler is tried here.
    pub(crate) fn is_tried(&mut self) -> bool {
        let is_tried = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_tried
    }

    /// When the one that is tried now began; with all that the worker did since the one before, unless it is timed alone.
    pub(crate) fn begin(&mut self, now: impl FnOnce() -> Instant) -> Instant {
        let last = self.last.take();
        self.alone = last.is_none();
        let began = last.unwrap_or_else(now);
        self.turn.get_or_insert(began);
        began
    }

    /// The worker waited for something: others could run.
    pub(crate) fn waited(&mut self) {
        self.last = None;
        self.turn = None;
    }

    /// One that was tried ended without waiting; whether it is the turn of others now.
    pub(crate) fn ended(&mut self, began: Instant, now: Instant) -> bool {
        let took = now.duration_since(began);
        if took > SURE || (took > LIGHT && self.alone) {
            self.waits();
        } else if took > LIGHT {
            // A fetch may have been in it: the next is timed alone.
            self.last = None;
        } else {
            self.last = Some(now);
            self.every = TRY.0;
        }
        self.turn.is_some_and(|turn| now.duration_since(turn) > TURN)
    }

    /// One that was tried is not light.
    pub(crate) fn waits(&mut self) {
        self.left = self.every;
        self.every = (self.every * 2).min(TRY.1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Handlers with a clock of their own.
    struct Handlers {
        light: Light,
        now: Instant,
    }

    impl Handlers {
        fn new() -> Self {
            Self { light: Light::new(), now: Instant::now() }
        }

        /// One that is tried, and takes so long; `fetch` before it, which is waited for or not.
        fn one(&mut self, fetch: Option<Duration>, took: Duration) -> bool {
            match fetch {
                Some(at_once) => self.now += at_once,
                None => self.light.waited(),
            }
            let now = self.now;
            let began = self.light.begin(|| now);
            self.now += took;
            self.light.ended(began, self.now)
        }

        /// One that is tried, and waits.
        fn waits(&mut self) -> bool {
            self.light.waits();
            true
        }

        /// How many of so many are tried.
        fn tried(&mut self, handlers: u32, mut one: impl FnMut(&mut Self) -> bool) -> u32 {
            let mut tried = 0;
            for _ in 0..handlers {
                if self.light.is_tried() {
                    tried += 1;
                    one(self);
                }
            }
            tried
        }
    }

    const QUICK: Duration = Duration::from_nanos(300);

    #[test]
    fn light_ones_are_all_tried_and_others_seldom() {
        let mut handlers = Handlers::new();
        assert_eq!(handlers.tried(5_000, |handlers| handlers.one(None, QUICK)), 5_000);
        assert_eq!(handlers.tried(5_000, |handlers| handlers.one(Some(QUICK), QUICK)), 5_000);
        assert!(handlers.tried(100_000, Handlers::waits) < 32);
        // They become light: found out within a few thousand.
        assert!(handlers.tried(20_000, |handlers| handlers.one(Some(QUICK), QUICK)) > 15_000);
    }

    #[test]
    fn one_that_computes_is_found_at_once() {
        for fetch in [None, Some(QUICK)] {
            let mut handlers = Handlers::new();
            handlers.one(None, QUICK);
            handlers.one(fetch, 2 * SURE);
            assert!(!handlers.light.is_tried());
            assert!(handlers.tried(100_000, |handlers| handlers.one(fetch, 2 * SURE)) < 32);
        }
    }

    #[test]
    fn one_that_is_a_little_long_is_found_when_it_is_timed_alone() {
        let mut handlers = Handlers::new();
        handlers.one(None, 5 * LIGHT);
        assert!(!handlers.light.is_tried());
        // Behind another, a fetch may have been in it: the next is timed alone, whatever its fetch takes.
        let mut handlers = Handlers::new();
        handlers.one(None, QUICK);
        handlers.one(Some(QUICK), 5 * LIGHT);
        assert!(handlers.light.is_tried());
        handlers.one(Some(5 * LIGHT), QUICK);
        assert!(handlers.light.is_tried());
        handlers.one(Some(5 * LIGHT), QUICK);
        assert!(handlers.light.is_tried(), "a fetch is not the handler's");
        handlers.one(Some(QUICK), 5 * LIGHT);
        assert!(!handlers.light.is_tried());
    }

    #[test]
    fn others_have_their_turn_after_a_while() {
        let mut handlers = Handlers::new();
        let mut turns = 0;
        let handled = 100 * u32::try_from(TURN.as_nanos() / QUICK.as_nanos()).unwrap();
        for _ in 0..handled {
            if handlers.one(Some(Duration::ZERO), QUICK) {
                turns += 1;
                handlers.light.waited();
            }
        }
        assert!((90..=100).contains(&turns), "{turns}");
        assert_eq!((0..handled).filter(|_| handlers.one(None, QUICK)).count(), 0, "others run whenever it waits");
    }

    #[test]
    fn what_is_long_for_a_fetch_is_the_handlers() {
        let mut handlers = Handlers::new();
        handlers.one(None, QUICK);
        handlers.one(Some(2 * SURE), QUICK);
        assert!(!handlers.light.is_tried());
    }
}
