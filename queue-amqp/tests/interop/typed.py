"""What the programs of this folder share: values with their types in JSON, and types that pika reads but cannot send."""

import calendar
import datetime
import decimal
import struct

import pika
import pika.data


class Raw:
    """A value in the bytes that another client would send: its type, and its contents."""

    def __init__(self, kind, form, *values):
        self.encoded = kind.encode() + struct.pack(">" + form, *values)


class Pairs(dict):
    """A table with names that repeat, which a dict cannot hold."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.pairs = pairs

    def items(self):
        return self.pairs


_encode_value = pika.data.encode_value


def _encode(pieces, value):
    if isinstance(value, Raw):
        pieces.append(value.encoded)
        return len(value.encoded)
    return _encode_value(pieces, value)


pika.data.encode_value = _encode


def describe(value):
    """Makes JSON of a value, with its Python type as the only name of an object."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, datetime.datetime):
        return {"datetime": calendar.timegm(value.utctimetuple())}
    if isinstance(value, decimal.Decimal):
        return {"decimal": str(value)}
    if isinstance(value, int):
        return {"int": int(value)}
    if isinstance(value, list):
        return [describe(v) for v in value]
    if isinstance(value, dict):
        # A name that is not UTF-8 stays bytes in pika.
        return {"dict": {n if isinstance(n, str) else n.hex(): describe(v) for n, v in value.items()}}
    raise TypeError(type(value))


def connect(url):
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = 10
    parameters.blocked_connection_timeout = 10
    return pika.BlockingConnection(parameters)
