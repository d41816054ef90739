//! Groups of a FIFO queue: while a message of a group is in flight, the rest of it waits.

use std::collections::HashMap;

use bytes::Bytes;

#[derive(Debug, Default)]
pub(super) struct Groups(HashMap<Bytes, usize>);

impl Groups {
    /// Takes a message of the group, unless one is in flight that this same fetch did not take.
    pub(super) fn try_take(&mut self, key: Option<&Bytes>, taken: &mut Vec<Bytes>) -> bool {
        let key = key.cloned().unwrap_or_default();
        let count = self.0.entry(key.clone()).or_default();
        if *count > 0 && !taken.contains(&key) {
            return false;
        }
        *count += 1;
        if !taken.contains(&key) {
            taken.push(key);
        }
        true
    }

    /// A message of the group is not in flight any more.
    pub(super) fn give_back(&mut self, key: Option<&Bytes>) {
        let key = key.cloned().unwrap_or_default();
        if let Some(count) = self.0.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&key);
            }
        }
    }
}
