"""Declares what a line of JSON says, and keeps the connection until its input ends: `declare.py URL`.

Each line is a list of a channel's methods, with the arguments for each; the properties of a message are an object. A line
of its own is the answer.
"""

import json
import sys

from pika import BasicProperties

from typed import connect


def main():
    connection = connect(sys.argv[1])
    channel = connection.channel()
    for line in sys.stdin:
        for method, arguments in json.loads(line):
            if "properties" in arguments:
                arguments["properties"] = BasicProperties(**arguments["properties"])
            getattr(channel, method)(**arguments)
        print("done", flush=True)
    connection.close()


main()
