"""A member of a group: `group.py URL TOPIC GROUP COUNT [METADATA]`.

Takes so many records, prints them as lines of JSON, commits what is behind the last of each partition with the metadata,
and leaves.
"""

import json
import sys
import time

from kafka import OffsetAndMetadata, TopicPartition

from records import PATIENCE, consumer, describe


def main():
    url, topic, group, count, *metadata = sys.argv[1:]
    member = consumer(url, group_id=group)
    member.subscribe([topic])
    left, positions = int(count), {}
    deadline = time.monotonic() + PATIENCE
    while left > 0:
        if time.monotonic() > deadline:
            sys.exit(f"{left} to go after {PATIENCE} s")
        for records in member.poll(timeout_ms=500, max_records=left).values():
            for record in records:
                print(json.dumps(describe(record)))
                position = OffsetAndMetadata(record.offset + 1, "".join(metadata), -1)
                positions[TopicPartition(topic, record.partition)] = position
                left -= 1
    member.commit(positions)
    member.close(autocommit=False)


main()
