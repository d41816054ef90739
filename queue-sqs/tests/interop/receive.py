"""Takes messages from a queue and prints each as a line of JSON: `receive.py URL QUEUE COUNT`.

What boto3 shows of it, and below `read` what `note.py` makes of that.
"""

import json
import sys
import time

import note
from queues import PATIENCE, connect, show


def main():
    url, name, count = sys.argv[1:]
    left = int(count)
    client = connect(url)
    queue = client.get_queue_url(QueueName=name)["QueueUrl"]
    end = time.monotonic() + PATIENCE
    while left:
        if time.monotonic() > end:
            sys.exit(f"{left} messages are missing")
        answer = client.receive_message(
            QueueUrl=queue,
            MaxNumberOfMessages=10,
            WaitTimeSeconds=2,
            MessageAttributeNames=["All"],
            MessageSystemAttributeNames=["All"],
        )
        for message in answer.get("Messages", []):
            attributes = {
                name: [value["DataType"], show(value.get("BinaryValue", value.get("StringValue")))]
                for name, value in message.get("MessageAttributes", {}).items()
            }
            payload, headers, properties = note.read(message)
            system = message["Attributes"]
            line = {
                "body": message["Body"],
                "attributes": attributes,
                "group": system.get("MessageGroupId"),
                "deduplication": system.get("MessageDeduplicationId"),
                "sent": int(system["SentTimestamp"]),
                "received": int(system["ApproximateFirstReceiveTimestamp"]),
                "read": {
                    "payload": payload.hex(),
                    "headers": [[name, show(value)] for name, value in headers],
                    "properties": {name: show(value) for name, value in properties.items()},
                },
            }
            print(json.dumps(line))
            client.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])
            left -= 1


main()
