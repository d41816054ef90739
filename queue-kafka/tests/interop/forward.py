"""Sends what is in one topic on to another, as any program would: `forward.py URL FROM TO COUNT`."""

import sys
import time

from kafka import KafkaProducer, TopicPartition

from records import PATIENCE, consumer, servers


def main():
    url, source, target, count = sys.argv[1:]
    left = int(count)
    reader = consumer(url)
    partitions = [TopicPartition(source, number) for number in sorted(reader.partitions_for_topic(source))]
    reader.assign(partitions)
    reader.seek_to_beginning(*partitions)
    producer = KafkaProducer(bootstrap_servers=servers(url))
    deadline = time.monotonic() + PATIENCE
    while left > 0:
        if time.monotonic() > deadline:
            sys.exit(f"{left} to go after {PATIENCE} s")
        for records in reader.poll(timeout_ms=500, max_records=left).values():
            for record in records:
                producer.send(target, record.value, record.key, record.headers, timestamp_ms=record.timestamp).get(20)
                left -= 1
    producer.close()
    reader.close()


main()
