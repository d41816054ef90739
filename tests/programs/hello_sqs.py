"""The first program of boto3: hello_sqs.py ENDPOINT send TEXT | receive."""

import sys

import boto3

endpoint, action, *rest = sys.argv[1:]
sqs = boto3.client(
    "sqs", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
)
attributes = {"DelaySeconds": "5", "MessageRetentionPeriod": "86400"}
url = sqs.create_queue(QueueName="test_queue", Attributes=attributes)["QueueUrl"]
print(url, flush=True)

if action == "send":
    sent = sqs.send_message(QueueUrl=url, MessageBody=rest[0])
    print(f"sent '{rest[0]}' as {sent['MessageId']}", flush=True)
else:
    while True:
        for message in sqs.receive_message(QueueUrl=url, WaitTimeSeconds=1).get("Messages", []):
            print(f"received '{message['Body']}'", flush=True)
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
