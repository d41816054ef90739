"""Sends one message of each kind: `send.py URL TOPIC`; or those that are named after it.

Prints a line of JSON for each, in order: its name, and where it is.
"""

import json
import sys

from kafka import KafkaProducer

from records import NULL, Name, servers

AT = 1_700_000_000_123

# Name: key, value, headers.
MESSAGES = {
    "text": (None, "grüße".encode(), []),
    "binary": (bytes(range(256)), bytes(reversed(range(256))), []),
    "empty": (b"", b"", []),
    "tombstone": (b"user-7", None, []),
    "large": (b"k", b"x" * 900_000, []),
    "headers": (
        None,
        b"x",
        [("text", "ünï".encode()), ("bytes", b"\x00\xff"), ("empty", b""), ("number", b"7"), ("null", NULL)],
    ),
    "repeated": (None, b"x", [("b", b"1"), ("a", b"2"), ("b", b"3"), ("b", NULL), ("a", b"2")]),
    "names": (
        None,
        b"x",
        [(name, b"1") for name in ("", "ünï ;%\n", "n" * 1000, "Tenant", "tenant", "a.b", "__proto__", "nul\0byte")],
    ),
    "a note that is none": (None, b"x", [("anyqueue-h", b"#k"), ("a", b"1")]),
    "a note that is no text": (None, b"x", [("anyqueue-h", b"\xff"), ("a", b"1")]),
    "a note without a value": (None, b"x", [("anyqueue-h", NULL), ("a", b"1")]),
}

HARD = {"latin name": (b"k", b"latin", [(Name("\xe9"), b"1")])}


def main():
    url, topic, *names = sys.argv[1:]
    messages = {name: (MESSAGES | HARD)[name] for name in names} or MESSAGES
    producer = KafkaProducer(bootstrap_servers=servers(url), compression_type="gzip")
    for name, (key, value, headers) in messages.items():
        sent = producer.send(topic, value, key, list(headers), timestamp_ms=AT).get(20)
        print(json.dumps({"name": name, "partition": sent.partition, "offset": sent.offset, "timestamp": sent.timestamp}))
    producer.close()


main()
