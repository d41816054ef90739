"""What the programs of this folder share: the client, and how values are shown as JSON."""

from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.config import Config

# Seconds that a program waits for what has to come; less than its test waits.
PATIENCE = 200


def connect(url):
    """A client for a URL of the library."""
    parts = urlsplit(url)
    options = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return boto3.client(
        "sqs",
        endpoint_url=f"http://{parts.netloc}",
        region_name=options["region"],
        aws_access_key_id=options["access_key"],
        aws_secret_access_key=options["secret_key"],
        config=Config(read_timeout=30),
    )


def show(value):
    return {"bytes": value.hex()} if isinstance(value, bytes) else value
