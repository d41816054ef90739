"""CloudEvents by the official SDK: `events.py URL TOPIC send EVENT`, in each mode, or `events.py URL TOPIC receive COUNT`.

An event is an object of JSON with attributes and data. What is received is printed so, one a line, with the key.
"""

import json
import sys

from cloudevents.core.bindings import kafka as binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from dateutil.parser import isoparse
from kafka import KafkaProducer

from records import consumer, servers

FORMAT = JSONFormat()


def send(url, topic, described):
    producer = KafkaProducer(bootstrap_servers=servers(url))
    attributes = described["attributes"] | {"time": isoparse(described["attributes"]["time"])}
    event = CloudEvent(attributes, described["data"])
    for to_message in (binding.to_binary, binding.to_structured):
        message = to_message(event, FORMAT)
        key = message.key.encode() if isinstance(message.key, str) else message.key
        producer.send(topic, message.value, key, list(message.headers.items())).get(20)
    producer.close()


def receive(url, topic, count):
    reader = consumer(url, consumer_timeout_ms=20_000)
    reader.subscribe([topic])
    for record in reader:
        event = binding.from_kafka(binding.KafkaMessage(dict(record.headers), record.key, record.value), FORMAT)
        described = {"attributes": event.get_attributes(), "data": event.get_data(), "key": record.key.decode()}
        print(json.dumps(described, default=str))
        count -= 1
        if count == 0:
            break
    reader.close()


def main():
    url, topic, what, argument = sys.argv[1:]
    if what == "send":
        send(url, topic, json.loads(argument))
    else:
        receive(url, topic, int(argument))


main()
