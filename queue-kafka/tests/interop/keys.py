"""Sends a message for each key, or without one, and prints the partition that each went to: `keys.py URL TOPIC`.

Reads the keys as a line of JSON, in hexadecimal.
"""

import json
import sys

from kafka import KafkaProducer

from records import servers


def main():
    url, topic = sys.argv[1:]
    keys = json.loads(sys.stdin.readline())
    producer = KafkaProducer(bootstrap_servers=servers(url))
    sent = [producer.send(topic, b"x", None if key is None else bytes.fromhex(key)) for key in keys]
    print(json.dumps([one.get(20).partition for one in sent]))
    producer.close()


main()
