"""What the programs of this folder share: where the broker is, records as JSON, and records that no public call makes."""

from urllib.parse import urlsplit

from kafka import KafkaConsumer
from kafka.record.default_records import DefaultRecordBatchBuilder

# Seconds that a program waits for what has to come; less than its test waits.
PATIENCE = 200


def servers(url):
    return urlsplit(url).netloc.split(",")


def consumer(url, **options):
    return KafkaConsumer(
        bootstrap_servers=servers(url), enable_auto_commit=False, auto_offset_reset="earliest", **options
    )


def hexed(value):
    return None if value is None else value.hex()


def describe(record):
    return {
        "partition": record.partition,
        "offset": record.offset,
        "timestamp": record.timestamp,
        "timestamp_type": record.timestamp_type,
        "key": hexed(record.key),
        "value": hexed(record.value),
        "headers": [[name, hexed(value)] for name, value in record.headers],
    }


class Name(str):
    """The name of a header in bytes that are no UTF-8, as other clients may send it."""

    def encode(self, *_):
        return str.encode(self, "latin-1")


# The public call refuses a header without a value, the encoder behind it writes one.
NULL = bytes(b"a header without a value")
_append = DefaultRecordBatchBuilder.append


def _append_nulls(self, offset, timestamp, key, value, headers):
    return _append(self, offset, timestamp, key, value, [(n, None if v is NULL else v) for n, v in headers])


DefaultRecordBatchBuilder.append = _append_nulls
