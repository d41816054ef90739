//! An event of CloudEvents, and the same as the programs in Python describe it.

use std::time::{Duration, UNIX_EPOCH};

use queue_worker::cloudevents::CloudEvent;
use serde_json::{Value, json};

pub(crate) type Event = CloudEvent<Value>;

/// The event of `described`.
pub(crate) fn event() -> Event {
    CloudEvent::new("17", "/shop", "com.example.placed", json!({"name": "grüße", "price": 0.5}))
        .subject("order/17")
        .time(UNIX_EPOCH + Duration::from_millis(1_700_000_000_123))
        .partition_key("user-7")
}

/// The same for the SDK, with its own way to print a time where it is one that it read.
pub(crate) fn described(time: &str) -> Value {
    json!({
        "attributes": {
            "specversion": "1.0", "id": "17", "source": "/shop", "type": "com.example.placed", "subject": "order/17",
            "time": time, "partitionkey": "user-7", "datacontenttype": "application/json",
        },
        "data": {"name": "grüße", "price": 0.5},
    })
}
