//! Queues of librdkafka, and who is told that there is something in them.

use std::ffi::c_void;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdkafka::bindings::{self as sys, rd_kafka_queue_t, rd_kafka_t};
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};

/// Called from librdkafka's threads when there is something in a queue that was empty.
pub(super) type Wake = Box<dyn Fn() + Send + Sync>;

/// A queue that is destroyed on drop.
pub(super) struct Queue(NonNull<rd_kafka_queue_t>);

impl Queue {
    /// # Safety
    /// The client must be alive, and the queue must go before it.
    pub(super) unsafe fn new(client: NonNull<rd_kafka_t>) -> Option<Self> {
        // SAFETY: the caller's.
        NonNull::new(unsafe { sys::rd_kafka_queue_new(client.as_ptr()) }).map(Self)
    }

    /// The queue of a client's events.
    ///
    /// # Safety
    /// The client must be alive, and the queue must go before it.
    unsafe fn main(client: NonNull<rd_kafka_t>) -> Option<Self> {
        // SAFETY: the caller's.
        NonNull::new(unsafe { sys::rd_kafka_queue_get_main(client.as_ptr()) }).map(Self)
    }

    pub(super) fn as_ptr(&self) -> *mut rd_kafka_queue_t {
        self.0.as_ptr()
    }

    /// Tells when something arrives.
    ///
    /// # Safety
    /// `wake` must live until the queue is gone.
    pub(super) unsafe fn tell(&self, wake: *const Wake) {
        // SAFETY: the queue is there; what is called gets what the caller vouches for.
        unsafe { sys::rd_kafka_queue_cb_event_enable(self.as_ptr(), Some(call), wake.cast_mut().cast::<c_void>()) };
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it was made by one of the above and is used nowhere else. librdkafka calls back with the queue locked, so
        // that after the first call nobody is in the callback any more.
        unsafe {
            sys::rd_kafka_queue_cb_event_enable(self.as_ptr(), None, ptr::null_mut());
            sys::rd_kafka_queue_destroy(self.as_ptr());
        }
    }
}

unsafe extern "C" fn call(_: *mut rd_kafka_t, wake: *mut c_void) {
    // SAFETY: `tell` passes it, and it lives until the queue is gone.
    let wake = unsafe { &*wake.cast_const().cast::<Wake>() };
    wake();
}

/// Tells when a producer has events to serve, as long as it lives. It keeps the producer.
pub(crate) struct Notice<C: ProducerContext + 'static> {
    /// These go in this order.
    _queue: Queue,
    _wake: Arc<Wake>,
    producer: Arc<BaseProducer<C>>,
}

impl<C: ProducerContext + 'static> fmt::Debug for Notice<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notice").finish_non_exhaustive()
    }
}

// SAFETY: librdkafka's handles may be used from every thread.
unsafe impl<C: ProducerContext + 'static> Send for Notice<C> {}

impl<C: ProducerContext + 'static> Notice<C> {
    /// `None` when librdkafka is out of memory.
    pub(crate) fn new(producer: Arc<BaseProducer<C>>, wake: impl Fn() + Send + Sync + 'static) -> Option<Self> {
        let client = NonNull::new(producer.client().native_ptr())?;
        let wake: Arc<Wake> = Arc::new(Box::new(wake));
        // SAFETY: the producer is alive; queue, wake and producer go in this order.
        let queue = unsafe {
            let queue = Queue::main(client)?;
            queue.tell(Arc::as_ptr(&wake));
            queue
        };
        Some(Self { _queue: queue, _wake: wake, producer })
    }

    pub(crate) fn producer(&self) -> &BaseProducer<C> {
        &self.producer
    }
}
