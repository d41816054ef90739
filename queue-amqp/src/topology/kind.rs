//! What type a queue is of.
//!
//! The protocol has no question for that. Who subscribes from a position of a stream learns it: a stream lets him, any
//! other queue refuses and names its type.

use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, ShortString};
use queue_core::{ErrorKind, Result};

use super::Topologist;
use crate::convert::{arguments, short};
use crate::error::within;
use crate::link::hang_up;
use crate::stream::OFFSET;
use crate::topology::native::QueueType;

/// Stands in the refusal before the type.
const TYPE: &str = "of queue type ";

impl Topologist<'_> {
    /// The type of a queue; `None` for one of a type that is not known here. Needs the right to read.
    pub(crate) async fn kind(&self, queue: &str) -> Result<Option<QueueType>> {
        let channel = self.channel().await?;
        // A stream wants a limit, and nothing is meant to arrive.
        within(self.deadline, "look", channel.basic_qos(1, BasicQosOptions { global: false })).await?;
        let next = arguments([(OFFSET, AMQPValue::LongString("next".into()))])?;
        let asked = channel.basic_consume(short(queue)?, ShortString::default(), BasicConsumeOptions::default(), next);
        let kind = match within(self.deadline, "look", asked).await {
            Ok(_) => {
                // Ends the subscription. That it was there is of no consequence: nothing is taken off a stream.
                within(self.deadline, "look", channel.close(200, "OK".into())).await?;
                Some(QueueType::Stream)
            }
            Err(error) if error.kind() == ErrorKind::Unsupported && error.message().contains(TYPE) => {
                refused(error.message())
            }
            Err(error) => {
                // The client would keep a channel on which a late answer subscribes.
                hang_up(&channel);
                return Err(error.with_context("queue", queue));
            }
        };
        Ok(kind)
    }
}

/// Reads the type from "invalid arg 'x-stream-offset' for queue 'q' in vhost '/' of queue type rabbit_quorum_queue".
fn refused(message: &str) -> Option<QueueType> {
    // Behind the last one: a name may hold anything.
    let (_, kind) = message.rsplit_once(TYPE)?;
    let kind = kind.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let kind = kind.strip_prefix("rabbit_").unwrap_or(kind);
    QueueType::named(kind.strip_suffix("_queue").unwrap_or(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_type_is_read_from_the_refusal() {
        let text =
            |kind: &str| format!("PRECONDITION_FAILED - invalid arg 'x' for queue 'of queue type a' {TYPE}{kind}");
        assert_eq!(refused(&text("rabbit_quorum_queue")), Some(QueueType::Quorum));
        assert_eq!(refused(&text("rabbit_classic_queue")), Some(QueueType::Classic));
        assert_eq!(refused(&text("'classic'")), Some(QueueType::Classic));
        assert_eq!(refused(&text("rabbit_mqtt_qos0_queue")), None);
        assert_eq!(refused("something else"), None);
    }
}
