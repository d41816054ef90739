//! Messages that were fetched and not handed out, in the vectors in which they came.

use std::collections::VecDeque;
use std::vec::IntoIter;

use queue_core::Received;

/// See the module. A vector that is taken whole is not copied.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    chunks: VecDeque<IntoIter<Received>>,
    len: usize,
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, chunk: Vec<Received>) {
        if !chunk.is_empty() {
            self.len += chunk.len();
            self.chunks.push_back(chunk.into_iter());
        }
    }

    /// Moves up to `max` messages.
    pub(super) fn take(&mut self, max: usize, into: &mut Vec<Received>) {
        let mut left = max;
        while let Some(chunk) = self.chunks.front_mut().filter(|_| left > 0) {
            let count = chunk.len().min(left);
            left -= count;
            self.len -= count;
            if count < chunk.len() {
                into.extend(chunk.take(count));
                return;
            }
            let Some(chunk) = self.chunks.pop_front() else { return };
            if into.is_empty() {
                // Vectors of a chunk that nobody began stay where they are.
                *into = chunk.collect();
            } else {
                into.extend(chunk);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Received> {
        self.chunks.iter().flat_map(IntoIter::as_slice)
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&Received) -> bool) {
        for chunk in std::mem::take(self).chunks {
            let mut chunk: Vec<_> = chunk.collect();
            chunk.retain(&keep);
            self.push(chunk);
        }
    }
}

#[cfg(test)]
mod tests {
    use queue_core::{AckToken, Message, Position};

    use super::*;

    fn chunk(numbers: std::ops::Range<u64>) -> Vec<Received> {
        let received = |n| Received {
            message: Ok(Message::new("x")),
            token: AckToken(0, n),
            attempt: 1,
            lease: None,
            position: Position::default(),
        };
        numbers.map(received).collect()
    }

    fn numbers<'a>(list: impl IntoIterator<Item = &'a Received>) -> Vec<u64> {
        list.into_iter().map(|received| received.token.1).collect()
    }

    fn take(buffer: &mut Buffer, max: usize) -> Vec<u64> {
        let mut into = Vec::new();
        buffer.take(max, &mut into);
        numbers(&into)
    }

    #[test]
    fn messages_leave_in_order_in_any_number() {
        let mut buffer = Buffer::default();
        for range in [0..4, 4..4, 4..5, 5..9] {
            buffer.push(chunk(range));
        }
        assert_eq!(take(&mut buffer, 2), [0, 1]);
        assert_eq!(take(&mut buffer, 4), [2, 3, 4, 5]);
        assert_eq!((buffer.len(), numbers(buffer.iter())), (3, vec![6, 7, 8]));
        assert_eq!(take(&mut buffer, 9), [6, 7, 8]);
        assert!(buffer.is_empty() && take(&mut buffer, 1).is_empty());
    }

    #[test]
    fn a_whole_chunk_stays_where_it_is() {
        let (mut buffer, whole) = (Buffer::default(), chunk(0..3));
        let place = whole.as_ptr();
        buffer.push(whole);
        let mut into = Vec::with_capacity(8);
        buffer.take(3, &mut into);
        assert_eq!((into.as_ptr(), into.len()), (place, 3));
    }

    #[test]
    fn some_may_go() {
        let mut buffer = Buffer::default();
        buffer.push(chunk(0..4));
        buffer.push(chunk(4..6));
        assert_eq!(take(&mut buffer, 1), [0]);
        buffer.retain(|received| received.token.1 % 2 == 0);
        assert_eq!((buffer.len(), take(&mut buffer, 9)), (2, vec![2, 4]));
    }
}
