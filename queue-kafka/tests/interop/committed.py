"""Prints what a group has committed in each partition, as a line of JSON: `committed.py URL TOPIC GROUP`."""

import json
import sys

from kafka import TopicPartition

from records import consumer


def main():
    url, topic, group = sys.argv[1:]
    reader = consumer(url, group_id=group)
    found = []
    for number in sorted(reader.partitions_for_topic(topic)):
        position = reader.committed(TopicPartition(topic, number), metadata=True)
        found.append(position and [position.offset, position.metadata])
    print(json.dumps(found))
    reader.close(autocommit=False)


main()
