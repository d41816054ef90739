"""Prints the names of all topics as a line of JSON: `topics.py URL`."""

import json
import sys

from records import consumer

reader = consumer(sys.argv[1])
print(json.dumps(sorted(reader.topics())))
reader.close()
