//! What a record of librdkafka says.

use std::ffi::{CStr, c_void};
use std::marker::PhantomData;
use std::{ptr, slice};

use rdkafka::Timestamp;
use rdkafka::bindings::{
    self as sys, rd_kafka_message_t, rd_kafka_resp_err_t, rd_kafka_timestamp_type_t, rd_kafka_topic_t,
};

/// A record that arrived, in librdkafka's memory.
#[derive(Debug)]
pub(crate) struct Record<'a> {
    pub(crate) topic: Topic<'a>,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) timestamp: Timestamp,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) payload: Option<&'a [u8]>,
    /// Names and values, in order. A name need not be UTF-8: any client may send it.
    pub(crate) headers: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

/// The topic of a record, whose name is looked for when it is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Topic<'a> {
    Native(*mut rd_kafka_topic_t, PhantomData<&'a ()>),
    #[cfg(test)]
    Named(&'a str),
}

impl<'a> Topic<'a> {
    /// The name; empty where it is not UTF-8, which Kafka does not allow.
    pub(crate) fn name(self) -> &'a str {
        match self {
            // SAFETY: the topic lives as long as the record, which made this.
            Self::Native(topic, _) => unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(topic)).to_str().unwrap_or("") },
            #[cfg(test)]
            Self::Named(name) => name,
        }
    }
}

/// A partition of a topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) topic: Topic<'a>,
    pub(crate) partition: i32,
}

impl Place<'_> {
    /// The partition that an error is about, if it is about one.
    ///
    /// # Safety
    /// As of [`Record::of`], for a message that has an error.
    pub(super) unsafe fn of(message: *mut rd_kafka_message_t) -> Option<Self> {
        // SAFETY: the caller's.
        let (topic, partition) = unsafe { ((*message).rkt, (*message).partition) };
        (!topic.is_null() && partition >= 0).then_some(Self { topic: Topic::Native(topic, PhantomData), partition })
    }
}

impl<'a> Record<'a> {
    /// # Safety
    /// The message must be one that librdkafka handed out without an error, and must outlive `'a`. Nobody else may look
    /// for its headers meanwhile, which librdkafka reads when they are first asked for.
    pub(super) unsafe fn of(message: *mut rd_kafka_message_t) -> Self {
        // SAFETY: the caller's. Key and payload are librdkafka's and live as long as the message.
        unsafe {
            Self {
                topic: Topic::Native((*message).rkt, PhantomData),
                partition: (*message).partition,
                offset: (*message).offset,
                timestamp: timestamp(message),
                key: bytes((*message).key, (*message).key_len),
                payload: bytes((*message).payload, (*message).len),
                headers: headers(message),
            }
        }
    }
}

/// # Safety
/// As of [`slice::from_raw_parts`], where it is not null.
unsafe fn bytes<'a>(start: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's.
    (!start.is_null()).then(|| unsafe { slice::from_raw_parts(start.cast(), len) })
}

/// # Safety
/// As of [`Record::of`].
unsafe fn timestamp(message: *mut rd_kafka_message_t) -> Timestamp {
    let mut kind = rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
    // SAFETY: the caller's; the kind is only written.
    let millis = unsafe { sys::rd_kafka_message_timestamp(message, &raw mut kind) };
    match kind {
        _ if millis == -1 => Timestamp::NotAvailable,
        rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME => Timestamp::CreateTime(millis),
        rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => Timestamp::LogAppendTime(millis),
        rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE => Timestamp::NotAvailable,
    }
}

/// # Safety
/// As of [`Record::of`].
unsafe fn headers<'a>(message: *mut rd_kafka_message_t) -> Vec<(&'a [u8], Option<&'a [u8]>)> {
    const OK: rd_kafka_resp_err_t = rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
    let mut list = ptr::null_mut();
    // SAFETY: the caller's. The list belongs to the message.
    if unsafe { sys::rd_kafka_message_headers(message, &raw mut list) } != OK {
        return Vec::new();
    }
    // SAFETY: the list was made by the call above.
    let count = unsafe { sys::rd_kafka_header_cnt(list) };
    let header = |index| {
        let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the three are only written; the name ends with a zero; the value has `len` bytes or is null. Both live
        // as long as the list, which the message owns.
        unsafe {
            let found = sys::rd_kafka_header_get_all(list, index, &raw mut name, &raw mut value, &raw mut len);
            (found == OK).then(|| (CStr::from_ptr(name).to_bytes(), bytes::<'a>(value, len)))
        }
    };
    (0..count).map_while(header).collect()
}
