"""A member of a group until its input ends: `member.py URL TOPIC GROUP ASSIGNOR…`.

Prints as lines of JSON which partitions it has whenever they change, and each record; commits them at once.
"""

import json
import sys
import threading

from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor

from records import consumer, describe

ASSIGNORS = {
    "cooperative-sticky": CooperativeStickyAssignor,
    "range": RangePartitionAssignor,
    "roundrobin": RoundRobinPartitionAssignor,
}


def main():
    url, topic, group, *names = sys.argv[1:]
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    member = consumer(
        url,
        group_id=group,
        partition_assignment_strategy=[ASSIGNORS[name] for name in names],
        heartbeat_interval_ms=500,
        session_timeout_ms=10_000,
    )
    member.subscribe([topic])
    before = None
    while not ended.is_set():
        found = [record for records in member.poll(timeout_ms=200).values() for record in records]
        assigned = sorted(partition.partition for partition in member.assignment())
        if assigned != before:
            print(json.dumps({"assigned": assigned}), flush=True)
            before = assigned
        for record in found:
            print(json.dumps(describe(record)), flush=True)
        if found:
            member.commit()
    member.close(autocommit=False)


main()
