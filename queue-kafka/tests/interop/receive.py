"""Prints all records of a topic as lines of JSON, in order of partition and offset: `receive.py URL TOPIC COUNT`.

Waits until there are that many.
"""

import json
import sys
import time

from kafka import TopicPartition

from records import consumer, describe


def main():
    url, topic, count = sys.argv[1:]
    reader = consumer(url)
    partitions = [TopicPartition(topic, number) for number in sorted(reader.partitions_for_topic(topic))]
    deadline = time.monotonic() + 20
    while sum(reader.end_offsets(partitions).values()) < int(count):
        if time.monotonic() > deadline:
            sys.exit(f"not {count} records within 20 s")
        time.sleep(0.05)
    ends = reader.end_offsets(partitions)
    reader.assign(partitions)
    reader.seek_to_beginning(*partitions)
    found = []
    while any(reader.position(partition) < ends[partition] for partition in partitions):
        for records in reader.poll(timeout_ms=500).values():
            found.extend(records)
        if time.monotonic() > deadline:
            sys.exit(f"{len(found)} records within 20 s")
    for record in sorted(found, key=lambda r: (r.partition, r.offset)):
        print(json.dumps(describe(record)))
    reader.close()


main()
