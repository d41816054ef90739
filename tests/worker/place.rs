//! The brokers, and what is different about them.

use std::time::Duration;

use anyqueue::{Client, Ordering, ReceiverBuilder};

use crate::Outcome;

/// A broker that workers are tried on.
pub(crate) struct Known {
    pub(crate) name: &'static str,
    scheme: &'static str,
    /// A URL, or the variable that holds one.
    url: &'static str,
    /// Options for the URL: what makes a lost process noticed soon.
    options: &'static str,
    pub(crate) durable: bool,
    /// How addresses with an order end.
    ordered: &'static str,
    /// Rather few messages: the test server is slow, or receives are.
    slow: bool,
}

pub(crate) const PLACES: &[Known] = &[
    Known {
        name: "memory",
        scheme: "memory",
        url: "memory://worker",
        options: "",
        durable: false,
        ordered: "",
        slow: false,
    },
    Known {
        name: "rabbitmq",
        scheme: "amqp",
        url: "ANYQUEUE_TEST_AMQP_URL",
        options: "",
        durable: true,
        ordered: "",
        slow: false,
    },
    Known {
        name: "rabbitmq 4",
        scheme: "amqp",
        url: "ANYQUEUE_TEST_AMQP4_URL",
        options: "",
        durable: true,
        ordered: "",
        slow: false,
    },
    Known {
        name: "kafka",
        scheme: "kafka",
        url: "ANYQUEUE_TEST_KAFKA_URL",
        options: "crash_guard=true&kafka.session.timeout.ms=6000",
        durable: true,
        ordered: "",
        slow: false,
    },
    Known {
        name: "sqs",
        scheme: "sqs",
        url: "ANYQUEUE_TEST_SQS_URL",
        // A poll that is left at the end receives, and SQS counts that.
        options: "wait_time=1s",
        durable: true,
        ordered: ".fifo",
        slow: true,
    },
];

/// A broker that can be reached.
pub(crate) struct Place {
    pub(crate) name: &'static str,
    pub(crate) url: String,
    pub(crate) slow: bool,
    scheme: &'static str,
    ordered: &'static str,
    /// Told apart from other runs.
    serial: u64,
}

impl Place {
    /// Why it cannot be reached otherwise.
    pub(crate) fn find(known: &Known) -> Result<Self, String> {
        if !anyqueue::DRIVERS.iter().any(|driver| driver.schemes.contains(&known.scheme)) {
            return Err(format!("built without the feature {}", known.scheme));
        }
        let mut url = match known.url.contains("://") {
            true => known.url.to_owned(),
            false => std::env::var(known.url).map_err(|_| format!("set {} to the URL of a broker", known.url))?,
        };
        if !known.options.is_empty() {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(known.options);
        }
        let Known { name, scheme, slow, ordered, .. } = *known;
        Ok(Self { name, url, slow, scheme, ordered, serial: fastrand::u64(..1 << 32) })
    }

    /// The name of a queue of this run.
    pub(crate) fn queue(&self, what: &str) -> String {
        format!("worker-{what}-{:x}", self.serial)
    }

    /// The name of a queue of this run that keeps the order of keys.
    pub(crate) fn ordered(&self, what: &str) -> String {
        self.queue(what) + self.ordered
    }

    pub(crate) async fn client(&self) -> Outcome<Client> {
        Ok(anyqueue::connect(&self.url).await?)
    }

    /// Native options of a queue with priorities.
    pub(crate) fn priorities(&self) -> &'static [(&'static str, &'static str)] {
        if self.scheme == "amqp" { &[("x-queue-type", "classic"), ("x-max-priority", "9")] } else { &[] }
    }

    /// A receiver in the order of keys. Opened before any sender: the queue may have to be made for it.
    pub(crate) fn in_order(&self, receiver: ReceiverBuilder) -> ReceiverBuilder {
        let receiver = receiver.ordering(Ordering::PerKey).lease(LEASE);
        if self.scheme == "amqp" { receiver.native("x-single-active-consumer", "true") } else { receiver }
    }
}

/// How long what a killed process had stays away.
pub(crate) const LEASE: Duration = Duration::from_secs(10);

/// More than anything takes: a message that kills its process has to come back a dozen times.
pub(crate) const PATIENCE: Duration = Duration::from_secs(400);

/// Whether the long form is wanted.
pub(crate) fn full() -> bool {
    std::env::var("FULL").is_ok_and(|full| full == "1")
}

/// Runs a case on a runtime of its own.
pub(crate) fn run(case: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        match tokio::time::timeout(PATIENCE * if full() { 10 } else { 1 }, case).await {
            Ok(outcome) => outcome,
            Err(_) => Err("it hangs".into()),
        }
    })
}

/// Waits until something is so.
pub(crate) async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
