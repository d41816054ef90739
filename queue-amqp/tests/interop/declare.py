"""Declares what a line of JSON says, and keeps the connection until its input ends: `declare.py URL`.

Each line is an object with the name of a channel's method, and the arguments for it. An empty object is the answer.
"""

import json
import sys

from typed import connect


def main():
    connection = connect(sys.argv[1])
    channel = connection.channel()
    for line in sys.stdin:
        for method, arguments in json.loads(line).items():
            getattr(channel, method)(**arguments)
        print("{}", flush=True)
    connection.close()


main()
