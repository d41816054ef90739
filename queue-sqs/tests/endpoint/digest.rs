//! The MD5 digests by which clients check what they sent and received.

use std::collections::BTreeMap;

use md5::{Digest, Md5};

use super::entry::Attribute;

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn of_body(body: &str) -> String {
    hex(&Md5::digest(body))
}

/// Names in order; each name, type and value with its length before it, and before the value a byte for its kind.
pub fn of_attributes(attributes: &BTreeMap<String, Attribute>) -> Option<String> {
    let mut bytes = Vec::new();
    for (name, attribute) in attributes {
        put(&mut bytes, name.as_bytes());
        put(&mut bytes, attribute.data_type.as_bytes());
        bytes.push(if attribute.is_binary() { 2 } else { 1 });
        put(&mut bytes, &attribute.value());
    }
    (!attributes.is_empty()).then(|| hex(&Md5::digest(&bytes)))
}

fn put(into: &mut Vec<u8>, part: &[u8]) {
    into.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
    into.extend(part);
}
