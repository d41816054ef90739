//! What there is of OpenTelemetry without the feature `otel`: nothing.

pub(crate) mod trace {
    use tracing::Span;

    use crate::capability::Capabilities;
    use crate::message::Message;

    #[derive(Debug)]
    pub(crate) struct Remote;
    pub(crate) type Attached = ();

    impl Remote {
        pub(crate) fn none() -> Self {
            Self
        }

        #[allow(clippy::unused_self, reason = "as with the feature")]
        pub(crate) fn is_none(&self) -> bool {
            true
        }

        #[allow(clippy::unused_self, reason = "as with the feature")]
        pub(crate) fn attach(&self) -> Attached {}
    }

    pub(crate) fn carry(_: &Span, _: &mut [Message], _: &Capabilities) {}

    pub(crate) fn follow(_: &Span, _: &Message) -> Remote {
        Remote
    }

    pub(crate) fn link(_: &Span, _: &Message) {}
}

pub(crate) mod metrics {
    use std::time::{Duration, SystemTime};

    use crate::observe::Subject;

    type ErrorType = Option<&'static str>;

    pub(crate) const fn is_on() -> bool {
        false
    }

    pub(crate) fn sent(_: &Subject, _: usize, _: usize, _: Duration, _: ErrorType) {}

    pub(crate) fn received(_: &Subject, _: usize, _: Duration, _: ErrorType) {}

    pub(crate) fn processed(_: &Subject, _: Duration, _: &[SystemTime], _: ErrorType) {}

    pub(crate) fn retried(_: &Subject) {}

    pub(crate) fn dead_lettered(_: &Subject) {}
}
