//! What tests of real brokers need: a set of brokers of their own, and a link that can be cut.

pub(crate) mod brokers;
pub(crate) mod proxy;
