"""Takes messages from a queue and prints each as a line of JSON: `receive.py URL QUEUE COUNT`."""

import json
import sys

from typed import connect, describe


def main():
    url, queue, count = sys.argv[1:]
    connection = connect(url)
    channel = connection.channel()
    for method, properties, body in channel.consume(queue, inactivity_timeout=20):
        if method is None:
            sys.exit(f"no message for 20 s, {count} to go")
        # Only what was set.
        seen = {name: describe(value) for name, value in vars(properties).items() if value is not None}
        seen["body"] = body.hex()
        seen["exchange"] = method.exchange
        seen["routing_key"] = method.routing_key
        print(json.dumps(seen))
        channel.basic_ack(method.delivery_tag)
        count = int(count) - 1
        if count == 0:
            break
    channel.cancel()
    connection.close()


main()
