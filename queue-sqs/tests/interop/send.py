"""Sends messages by name to a queue: `send.py URL QUEUE NAME…`. Prints a line of JSON for each: name and message id."""

import base64
import json
import sys

from queues import connect


def text(value, label=""):
    return {"DataType": f"String{label}", "StringValue": value}


def number(value, label=""):
    return {"DataType": f"Number{label}", "StringValue": value}


def binary(value, label=""):
    return {"DataType": f"Binary{label}", "BinaryValue": value}


ALL_BYTES = bytes(range(256))

# Name: body, attributes, further parameters.
MESSAGES = {
    "text": ("grüße \U0001f980", {}, {}),
    "base64": (base64.b64encode(ALL_BYTES).decode(), {"anyqueue-encoding": text("base64")}, {}),
    "empty": ("-", {"anyqueue-encoding": text("empty")}, {}),
    "unmarked base64": (base64.b64encode(ALL_BYTES).decode(), {}, {}),
    "no base64": ("not base64!", {"anyqueue-encoding": text("base64")}, {}),
    "attributes": (
        "x",
        {
            "text": text("ünï"),
            "int": number("7"),
            "least": number("-9223372036854775808"),
            "float": number("-0.5"),
            "exponent": number("1e3"),
            "long": number("9223372036854775808"),
            "bytes": binary(b"\x00\xff"),
        },
        {},
    ),
    "labels": (
        "x",
        {"text": text("a", ".colour"), "int": number("7", ".int"), "bytes": binary(b"\x89PNG", ".png")},
        {},
    ),
    "ten": ("x", {f"h{n}": number(str(n)) for n in range(10)}, {}),
    "a note that is none": ("x", {"anyqueue-h": text("#k"), "a": number("1")}, {}),
    "a note that is no text": ("x", {"anyqueue-h": binary(b"#k"), "a": number("1")}, {}),
    "first": ("first", {}, {"MessageGroupId": "g;1", "MessageDeduplicationId": "one"}),
    "first again": ("first again", {}, {"MessageGroupId": "g;1", "MessageDeduplicationId": "one"}),
    "second": ("second", {}, {"MessageGroupId": "g;1", "MessageDeduplicationId": "two"}),
    "other group": ("other group", {}, {"MessageGroupId": "other", "MessageDeduplicationId": "three"}),
    "delayed": ("delayed", {}, {"DelaySeconds": 2}),
}


def main():
    url, name, *names = sys.argv[1:]
    client = connect(url)
    queue = client.get_queue_url(QueueName=name)["QueueUrl"]
    for name in names:
        body, attributes, parameters = MESSAGES[name]
        sent = client.send_message(QueueUrl=queue, MessageBody=body, MessageAttributes=attributes, **parameters)
        print(json.dumps({"name": name, "id": sent["MessageId"]}))


main()
