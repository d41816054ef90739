//! A queue that all partitions of a consumer feed, from which records are read in batches.
//!
//! A poll of one record costs a lock, an allocation and three looks at the clock. librdkafka has a call that takes many,
//! which yields nothing on the queue of a consumer that is subscribed as the bindings do it; on a queue of one's own it
//! does, and the consumer's is polled for rebalances and errors alone.

use std::ffi::CString;
use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::bindings::{self as sys, rd_kafka_message_t, rd_kafka_t};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::types::RDKafkaRespErr;

use super::queue::{Queue, Wake};
use super::record::{Place, Record};

/// Records of one call. Each call may wake the receiver's task, which costs as much as a hundred messages.
const BATCH: usize = 2048;
const OK: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;

/// What the partitions feed: known to the consumer's callbacks, and open as long as a [`Reader`] reads from it.
pub(crate) struct Feed {
    open: Mutex<Option<Open>>,
    /// Called when there is something to read.
    wake: Wake,
}

struct Open {
    client: NonNull<rd_kafka_t>,
    records: Queue,
    /// Where the answers to commits arrive.
    answers: Queue,
}

// SAFETY: librdkafka's handles may be used from every thread.
unsafe impl Send for Open {}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("open", &self.open.lock().is_some()).finish()
    }
}

impl Feed {
    /// A feed that calls `wake` when there is something to read.
    pub(crate) fn new(wake: impl Fn() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { open: Mutex::new(None), wake: Box::new(wake) })
    }

    /// Lets a partition feed this from now on. To be called before the partition is assigned: what is fetched before
    /// comes by a poll of the consumer.
    pub(crate) fn connect(&self, topic: &str, partition: i32) {
        let open = self.open.lock();
        let (Some(open), Ok(topic)) = (&*open, CString::new(topic)) else { return };
        // SAFETY: the client lives as long as the feed is open. The handle of the partition's queue is given back; the
        // queue itself stays forwarded.
        unsafe {
            let queue = sys::rd_kafka_queue_get_partition(open.client.as_ptr(), topic.as_ptr(), partition);
            if !queue.is_null() {
                sys::rd_kafka_queue_forward(queue, open.records.as_ptr());
                sys::rd_kafka_queue_destroy(queue);
            }
        }
    }
}

/// Reads from a consumer. It has the consumer's feed and the consumer, which go in this order.
pub(crate) struct Reader<C: ConsumerContext + 'static> {
    feed: Arc<Feed>,
    consumer: BaseConsumer<C>,
}

impl<C: ConsumerContext + 'static> fmt::Debug for Reader<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("feed", &self.feed).finish_non_exhaustive()
    }
}

impl<C: ConsumerContext + 'static> Drop for Reader<C> {
    fn drop(&mut self) {
        // Before the consumer, to which the queues belong.
        self.feed.open.lock().take();
    }
}

impl<C: ConsumerContext + 'static> Reader<C> {
    /// Opens the feed for a consumer that has no partitions yet. A feed has one consumer in its life.
    ///
    /// # Errors
    /// What librdkafka says when it is out of memory, and a feed that has a consumer.
    pub(crate) fn new(mut consumer: BaseConsumer<C>, feed: Arc<Feed>) -> KafkaResult<Self> {
        let mut open = feed.open.lock();
        if open.is_some() {
            return Err(KafkaError::ClientCreation("the feed has a consumer".to_owned()));
        }
        let signal = feed.clone();
        consumer.set_nonempty_callback(move || (signal.wake)());
        let none = || KafkaError::ClientCreation("no queue for its records".to_owned());
        let client = NonNull::new(consumer.client().native_ptr()).ok_or_else(none)?;
        // SAFETY: the consumer is alive, and this drops the queues before it.
        let (records, answers) = unsafe { (Queue::new(client), Queue::new(client)) };
        let (records, answers) = (records.ok_or_else(none)?, answers.ok_or_else(none)?);
        for queue in [&records, &answers] {
            // SAFETY: the feed lives until the queues are gone: this has it.
            unsafe { queue.tell(&raw const feed.wake) };
        }
        *open = Some(Open { client, records, answers });
        drop(open);
        Ok(Self { feed, consumer })
    }

    pub(crate) fn consumer(&self) -> &BaseConsumer<C> {
        &self.consumer
    }

    /// Up to `max` records, or as many as one call of librdkafka takes, without waiting.
    pub(crate) fn read(&self, max: usize) -> Records<'_> {
        let Some(queue) = self.feed.open.lock().as_ref().map(|open| open.records.as_ptr()) else {
            return Records::default();
        };
        let mut messages = vec![ptr::null_mut(); max.min(BATCH)];
        // SAFETY: the queue is there as long as this; no more messages are written than there is room for.
        let count = unsafe { sys::rd_kafka_consume_batch_queue(queue, 0, messages.as_mut_ptr(), messages.len()) };
        messages.truncate(usize::try_from(count).unwrap_or(0));
        Records { messages, reader: PhantomData }
    }

    /// Serves rebalances, errors and logs; a record only where it was fetched before its partition fed the feed.
    /// False when there is nothing more.
    pub(crate) fn serve(&self, mut each: impl FnMut(Result<Record<'_>, (KafkaError, Option<Place<'_>>)>)) -> bool {
        match self.consumer.poll(std::time::Duration::ZERO) {
            // SAFETY: the bindings hand out messages without an error, and the record goes before its message.
            Some(Ok(message)) => each(Ok(unsafe { Record::of(message.ptr()) })),
            Some(Err(error)) => each(Err((error, None))),
            None => return false,
        }
        true
    }

    /// Commits without waiting; [`committed`](Self::committed) tells what came of it.
    pub(crate) fn commit(&self, positions: &TopicPartitionList) -> KafkaResult<()> {
        let open = self.feed.open.lock();
        let Some(open) = &*open else { return Err(KafkaError::ConsumerCommit(Code::BrokerDestroy)) };
        // SAFETY: client and queue live as long as the feed is open; the list is copied.
        let result = unsafe {
            sys::rd_kafka_commit_queue(
                open.client.as_ptr(),
                positions.ptr(),
                open.answers.as_ptr(),
                None,
                ptr::null_mut(),
            )
        };
        if result == OK { Ok(()) } else { Err(KafkaError::ConsumerCommit(result.into())) }
    }

    /// The broker's answer to the oldest commit whose answer was not taken yet, if it is there.
    pub(crate) fn committed(&self) -> Option<KafkaResult<()>> {
        let queue = self.feed.open.lock().as_ref().map(|open| open.answers.as_ptr())?;
        // SAFETY: the queue is there as long as this; the event is destroyed below, and nothing of it is kept.
        unsafe {
            let event = NonNull::new(sys::rd_kafka_queue_poll(queue, 0))?.as_ptr();
            let mut error = sys::rd_kafka_event_error(event);
            let list = sys::rd_kafka_event_topic_partition_list(event);
            if error == OK && !list.is_null() && (*list).cnt > 0 {
                let partitions = std::slice::from_raw_parts((*list).elems, (*list).cnt.unsigned_abs() as usize);
                error = partitions.iter().map(|p| p.err).find(|e| *e != OK).unwrap_or(OK);
            }
            sys::rd_kafka_event_destroy(event);
            Some(if error == OK { Ok(()) } else { Err(KafkaError::ConsumerCommit(error.into())) })
        }
    }
}

/// Records in librdkafka's memory, which get it back on drop.
#[derive(Default)]
pub(crate) struct Records<'a> {
    messages: Vec<*mut rd_kafka_message_t>,
    /// The consumer goes after its messages.
    reader: PhantomData<&'a ()>,
}

impl Records<'_> {
    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// What arrived, in order; an error where librdkafka has one to tell in the place of a record, and the partition that
    /// it is about.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Result<Record<'_>, (KafkaError, Option<Place<'_>>)>> {
        // SAFETY: librdkafka wrote these, and they live as long as this. Headers are looked for in one thread: a pointer
        // makes it `!Sync`.
        self.messages.iter().map(|&message| match unsafe { (*message).err } {
            // SAFETY: it has no error.
            OK => Ok(unsafe { Record::of(message) }),
            // SAFETY: as above.
            error => Err((KafkaError::MessageConsumption(error.into()), unsafe { Place::of(message) })),
        })
    }
}

impl Drop for Records<'_> {
    fn drop(&mut self) {
        for &message in &self.messages {
            // SAFETY: librdkafka handed it out, and whoever borrowed from it is gone.
            unsafe { sys::rd_kafka_message_destroy(message) };
        }
    }
}
