"""Publishes one message of each kind to a queue: `send.py URL QUEUE`; or one that is hard to read: with its name."""

import datetime
import decimal
import sys

from pika import BasicProperties

from typed import Pairs, Raw, connect

UTC = datetime.timezone.utc

MESSAGES = {
    "text": (
        "grüße".encode(),
        {
            "content_type": "text/plain",
            "content_encoding": "utf-8",
            "delivery_mode": 2,
            "priority": 5,
            "correlation_id": "c-1",
            "reply_to": "replies",
            "expiration": "60000",
            "timestamp": 1_700_000_000,
            "type": "greeting",
            "user_id": "guest",
            "app_id": "pika",
            "cluster_id": "cluster",
        },
    ),
    "binary": (bytes(range(256)), {}),
    "empty": (b"", {}),
    "several frames": (b"x" * 1_000_000, {}),
    "headers": (
        b"",
        {
            "headers": {
                "text": "ünï",
                "bytes": b"\x00\xff",
                "int": 7,
                "wide": 2**40,
                "least": -(2**63),
                "true": True,
                "false": False,
                "time": datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
                "decimal": decimal.Decimal("2.5"),
                "below zero": decimal.Decimal("-0.25"),
                "null": None,
                "list": [1, "two", [b"\x03", None], {"four": 4}],
                "table": {"b": 1, "a": {"deep": [True]}, "": "empty"},
                "empty": {},
                "nothing": [],
            }
        },
    ),
    # As clients in other languages send them.
    "types": (
        b"",
        {
            "headers": {
                "byte": Raw("b", "b", -128),
                "unsigned byte": Raw("B", "B", 255),
                "short": Raw("s", "h", -32768),
                "unsigned short": Raw("u", "H", 65535),
                "int": Raw("I", "i", -(2**31)),
                "unsigned int": Raw("i", "I", 2**32 - 1),
                "long": Raw("l", "q", -(2**63)),
                "float": Raw("f", "f", 0.5),
                "double": Raw("d", "d", -1e300),
                "latin": Raw("S", "I1s", 1, b"\xe9"),
                "far future": Raw("T", "Q", 253_402_300_799),
                "deep": Raw("A", "I5s", 5, b"A\x00\x00\x00\x00"),
            }
        },
    ),
    "names": (
        b"",
        {"headers": {"": 1, "ünï ;%\n": 2, "n" * 255: 3, "Tenant": 4, "tenant": 5, "a.b": 6, "__proto__": 7}},
    ),
    "repeated": (b"", {"headers": Pairs([("b", 1), ("a", 2), ("b", 3)])}),
    "a note that is none": (b"", {"headers": {"anyqueue-h": "#k", "a": 1}}),
    "a note that is no text": (b"", {"headers": {"anyqueue-h": 7, "a": 1}}),
    # Copied with all its headers from a queue that counted, as tools that move messages do.
    "moved": (b"", {"headers": {"x-delivery-count": 9, "x-death": [{"queue": "other", "count": 3}], "a": 1}}),
}


def nested(levels):
    """As many lists within each other."""
    value = b"V"
    for _ in range(levels):
        value = b"A" + len(value).to_bytes(4, "big") + value
    return Raw("", f"{len(value)}s", value)


HARD = {
    "nested": (b"nested", {"headers": {"list": nested(40)}}),
    "latin property": (b"latin", {"content_type": b"\xe9"}),
    "latin name": (b"latin", {"headers": {b"\xe9": 1}}),
}


def main():
    url, queue, *names = sys.argv[1:]
    messages = {name: HARD[name] for name in names} or MESSAGES
    connection = connect(url)
    channel = connection.channel()
    channel.confirm_delivery()
    for name, (body, properties) in messages.items():
        channel.basic_publish("", queue, body, BasicProperties(message_id=name, **properties), mandatory=True)
    connection.close()


main()
