"""The first program of kafka-python: hello_kafka.py SERVER send KEY VALUE | receive."""

import sys

from kafka import KafkaConsumer, KafkaProducer

server, action, *rest = sys.argv[1:]

if action == "send":
    producer = KafkaProducer(bootstrap_servers=server)
    producer.send("test_topic", key=rest[0].encode(), value=rest[1].encode()).get(timeout=30)
    print(f"sent key={rest[0]} value={rest[1]}", flush=True)
else:
    for record in KafkaConsumer("test_topic", bootstrap_servers=server, auto_offset_reset="earliest"):
        key = record.key.decode() if record.key is not None else "none"
        print(f"{record.topic}:{record.partition}:{record.offset}: key={key} value={record.value.decode()}", flush=True)
