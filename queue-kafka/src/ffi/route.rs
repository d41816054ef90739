//! A topic of a producer, found once.
//!
//! The bindings name the topic with every message: a string is allocated for it, and librdkafka looks it up.

use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdkafka::bindings::{self as sys, rd_kafka_topic_t};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};

/// The partitioner decides.
const ANY_PARTITION: i32 = -1;
const COPY: c_int = sys::RD_KAFKA_MSG_F_COPY;

/// A topic to send to. It keeps its producer.
pub(crate) struct Route<C: ProducerContext<DeliveryOpaque = usize> + 'static> {
    topic: NonNull<rd_kafka_topic_t>,
    /// Goes after the topic.
    _producer: Arc<BaseProducer<C>>,
}

// SAFETY: librdkafka's handles may be used from every thread.
unsafe impl<C: ProducerContext<DeliveryOpaque = usize> + 'static> Send for Route<C> {}
// SAFETY: as above.
unsafe impl<C: ProducerContext<DeliveryOpaque = usize> + 'static> Sync for Route<C> {}

impl<C: ProducerContext<DeliveryOpaque = usize> + 'static> fmt::Debug for Route<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").finish_non_exhaustive()
    }
}

impl<C: ProducerContext<DeliveryOpaque = usize> + 'static> Drop for Route<C> {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, and the producer goes after it.
        unsafe { sys::rd_kafka_topic_destroy(self.topic.as_ptr()) };
    }
}

impl<C: ProducerContext<DeliveryOpaque = usize> + 'static> Route<C> {
    /// `None` for a name that librdkafka does not take.
    pub(crate) fn new(producer: Arc<BaseProducer<C>>, topic: &str) -> Option<Self> {
        let name = CString::new(topic).ok()?;
        // SAFETY: the producer is alive; without a configuration it takes the producer's.
        let topic = unsafe { sys::rd_kafka_topic_new(producer.client().native_ptr(), name.as_ptr(), ptr::null_mut()) };
        Some(Self { topic: NonNull::new(topic)?, _producer: producer })
    }

    /// Gives one message to librdkafka, which copies it; the word comes back with its verdict. The time is the present.
    ///
    /// # Errors
    /// Why it was not taken: there is no verdict then.
    pub(crate) fn send(&self, payload: &[u8], key: Option<&[u8]>, word: usize) -> Result<(), KafkaError> {
        let (key, key_len) = key.map_or((ptr::null(), 0), |key| (key.as_ptr().cast::<c_void>(), key.len()));
        // SAFETY: topic and producer are alive; payload and key are copied before it returns. The word is what the
        // bindings pass to the delivery callback, whose type is that of a word.
        let result = unsafe {
            sys::rd_kafka_produce(
                self.topic.as_ptr(),
                ANY_PARTITION,
                COPY,
                payload.as_ptr().cast::<c_void>().cast_mut(),
                payload.len(),
                key,
                key_len,
                ptr::without_provenance_mut(word),
            )
        };
        if result == 0 {
            return Ok(());
        }
        // SAFETY: it reads a number of this thread.
        let code: Code = unsafe { sys::rd_kafka_last_error() }.into();
        Err(KafkaError::MessageProduction(code))
    }
}
