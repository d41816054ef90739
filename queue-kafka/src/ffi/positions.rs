//! What a group committed: the bindings panic on metadata that is not UTF-8, which any client may write.

use std::ffi::CStr;
use std::slice;

use rdkafka::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;

/// What a group committed in a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Committed {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// `None` where it has committed nothing.
    pub(crate) offset: Option<i64>,
    /// What stands beside it; empty where it is not text.
    pub(crate) metadata: String,
}

/// Where a group stands, in the partitions of which the broker tells it: not of one whose position is part of a transaction
/// that is not over.
pub(crate) fn committed(list: &TopicPartitionList) -> Vec<Committed> {
    let list = list.ptr();
    // SAFETY: the list lives as long as this; its elements are as many as it says.
    let elements = unsafe {
        match usize::try_from((*list).cnt) {
            Ok(count) if !(*list).elems.is_null() => slice::from_raw_parts((*list).elems, count),
            _ => &[],
        }
    };
    let there = elements.iter().filter(|e| e.err == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    there
        .map(|e| {
            // SAFETY: a topic's name ends with a zero; metadata has as many bytes as it says, or is null.
            let (topic, metadata) = unsafe {
                let metadata: &[u8] = match e.metadata_size {
                    0 => &[],
                    _ if e.metadata.is_null() => &[],
                    size => slice::from_raw_parts(e.metadata.cast(), size),
                };
                (CStr::from_ptr(e.topic).to_string_lossy().into_owned(), metadata.to_vec())
            };
            let metadata = String::from_utf8(metadata).unwrap_or_default();
            Committed { topic, partition: e.partition, offset: (e.offset >= 0).then_some(e.offset), metadata }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use rdkafka::Offset;

    use super::*;

    #[test]
    fn positions_are_told_with_their_metadata_where_it_is_text() {
        let mut list = TopicPartitionList::new();
        assert_eq!(committed(&list), []);
        list.add_partition_offset("orders", 3, Offset::Offset(7)).unwrap();
        list.add_partition_offset("orders", 4, Offset::Offset(8)).unwrap();
        list.add_partition("orders", 5);
        list.find_partition("orders", 3).unwrap().set_metadata("aq1:1+2");
        list.find_partition("orders", 4).unwrap().set_metadata("no text");
        // SAFETY: the second element, and the first byte of its metadata.
        unsafe { *(*(*list.ptr()).elems.add(1)).metadata.cast::<u8>() = 0xff };
        let place = |partition, offset, metadata: &str| Committed {
            topic: "orders".to_owned(),
            partition,
            offset,
            metadata: metadata.to_owned(),
        };
        assert_eq!(committed(&list), [place(3, Some(7), "aq1:1+2"), place(4, Some(8), ""), place(5, None, "")]);
        // SAFETY: the third element.
        unsafe { (*(*list.ptr()).elems.add(2)).err = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNSTABLE_OFFSET_COMMIT };
        assert_eq!(committed(&list).len(), 2);
    }
}
