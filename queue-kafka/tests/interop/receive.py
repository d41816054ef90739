"""Prints all records of a topic as lines of JSON, in order of partition and offset: `receive.py URL TOPIC COUNT`.

Waits until there are that many.
"""

import json
import sys
import time

from kafka import TopicPartition

from records import PATIENCE, consumer, describe


def main():
    url, topic, count = sys.argv[1:]
    reader = consumer(url)
    deadline = time.monotonic() + PATIENCE
    # A topic that was made a moment ago may not be known to every broker.
    while not (numbers := reader.partitions_for_topic(topic)):
        if time.monotonic() > deadline:
            sys.exit(f"no topic {topic} within {PATIENCE} s")
        time.sleep(0.05)
    partitions = [TopicPartition(topic, number) for number in sorted(numbers)]
    while sum(reader.end_offsets(partitions).values()) < int(count):
        if time.monotonic() > deadline:
            sys.exit(f"not {count} records within {PATIENCE} s")
        time.sleep(0.05)
    ends = reader.end_offsets(partitions)
    reader.assign(partitions)
    reader.seek_to_beginning(*partitions)
    found = []
    while any(reader.position(partition) < ends[partition] for partition in partitions):
        for records in reader.poll(timeout_ms=500).values():
            found.extend(records)
        if time.monotonic() > deadline:
            sys.exit(f"{len(found)} records within {PATIENCE} s")
    for record in sorted(found, key=lambda r: (r.partition, r.offset)):
        print(json.dumps(describe(record)))
    reader.close()


main()
