"""CloudEvents by the official SDK: `events.py URL QUEUE send EVENT`, in each mode, or `events.py URL QUEUE receive COUNT`.

An event is an object of JSON with attributes and data. What is received is printed so, one a line.
"""

import json
import sys

from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from dateutil.parser import isoparse
from pika import BasicProperties

from typed import connect

FORMAT = JSONFormat()


def forms(event):
    """Content type, headers and body in each mode, by both bindings of the SDK."""
    for binding in (amqp.to_binary, amqp.to_structured):
        message = binding(event, FORMAT)
        yield message.properties.get("content-type"), message.application_properties, message.application_data
    for binding in (rabbitmq.to_binary, rabbitmq.to_structured):
        message = binding(event, FORMAT)
        yield message.content_type, message.headers, message.body


def send(channel, queue, described):
    attributes = described["attributes"] | {"time": isoparse(described["attributes"]["time"])}
    for content_type, headers, body in forms(CloudEvent(attributes, described["data"])):
        properties = BasicProperties(content_type=content_type, headers=headers)
        channel.basic_publish("", queue, body, properties, mandatory=True)


def receive(channel, queue, count):
    for method, properties, body in channel.consume(queue, inactivity_timeout=20):
        if method is None:
            sys.exit(f"no message for 20 s, {count} to go")
        named = {"content-type": properties.content_type} if properties.content_type else {}
        event = amqp.from_amqp(amqp.AMQPMessage(named, properties.headers or {}, body), FORMAT)
        print(json.dumps({"attributes": event.get_attributes(), "data": event.get_data()}, default=str))
        channel.basic_ack(method.delivery_tag)
        count -= 1
        if count == 0:
            break
    channel.cancel()


def main():
    url, queue, what, argument = sys.argv[1:]
    connection = connect(url)
    channel = connection.channel()
    channel.confirm_delivery()
    if what == "send":
        send(channel, queue, json.loads(argument))
    else:
        receive(channel, queue, int(argument))
    connection.close()


main()
