"""Reads a message that this library sent, whatever it had to do to fit it into SQS."""

import base64
import struct
from urllib.parse import unquote, unquote_to_bytes

PROPERTIES = {
    "k": "key",
    "i": "id",
    "s": "subject",
    "c": "content_type",
    "o": "correlation_id",
    "r": "reply_to",
    "p": "priority",
    "t": "timestamp",
    "x": "tombstone",
}


def read(message):
    """Payload (bytes), headers (pairs of name and value, in order) and properties of a message of boto3."""
    attributes = dict(message.get("MessageAttributes", {}))
    encoding = attributes.pop("anyqueue-encoding", {}).get("StringValue")
    rest = attributes.pop("anyqueue-h", {}).get("StringValue", "")
    payload = {"base64": base64.b64decode, "empty": lambda _: b""}.get(encoding, str.encode)(message["Body"])
    # Numbers in the note count the attributes by name.
    native = [(name, attribute(attributes[name])) for name in sorted(attributes)]
    headers, properties, listed = [], {}, False
    while rest:
        if rest[0] == "#":
            item, rest = rest[1:].split(";", 1)
            text = unquote_to_bytes(item[1:])
            properties[PROPERTIES.get(item[0], item[0])] = text if item[0] == "k" else text.decode()
            continue
        listed = True
        if rest[0] == ":":
            name, rest = rest[1:].split(";", 1)
            value, rest = decode(rest)
            headers.append((unquote(name), value))
        else:
            digits = len(rest) - len(rest.lstrip("0123456789"))
            name, value = native[int(rest[:digits])]
            # What the attribute's text stands for: a boolean, seconds since 1970.
            kind, rest = rest[digits], rest[digits + 1 :]
            headers.append((name, {"b": lambda v: v == "true", "@": float}.get(kind, lambda v: v)(value)))
    return payload, headers if listed else native, properties


def attribute(value):
    kind = value["DataType"].split(".")[0]
    if kind == "Binary":
        return value["BinaryValue"]
    text = value["StringValue"]
    return text if kind == "String" else float(text) if "." in text else int(text)


def decode(rest):
    """One value that no attribute could carry, and what stands behind it."""
    kind, rest = rest[0], rest[1:]
    if kind == "[":
        values = []
        while rest[0] != "]":
            value, rest = decode(rest)
            values.append(value)
        return values, rest[1:]
    if kind == "{":
        values = {}
        while rest[0] != "}":
            name, rest = rest.split(";", 1)
            values[unquote(name)], rest = decode(rest)
        return values, rest[1:]
    text, rest = rest.split(";", 1)
    read = {
        "y": unquote_to_bytes,
        "s": unquote,
        "i": int,
        "d": lambda bits: struct.unpack(">d", bytes.fromhex(bits.zfill(16)))[0],
        "b": lambda bit: bit == "1",
        "@": float,
        "n": lambda _: None,
    }[kind]
    return read(text), rest
