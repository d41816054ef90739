"""Answers requests in capitals, from a queue: `rpc_server.py URL QUEUE COUNT`."""

import sys

from pika import BasicProperties

from typed import connect


def main():
    url, queue, count = sys.argv[1:]
    connection = connect(url)
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1)
    for method, request, body in channel.consume(queue, inactivity_timeout=20):
        if method is None:
            sys.exit(f"no request for 20 s, {count} to go")
        reply = BasicProperties(correlation_id=request.correlation_id, content_type=request.content_type)
        channel.basic_publish("", request.reply_to, body.upper(), reply)
        channel.basic_ack(method.delivery_tag)
        count = int(count) - 1
        if count == 0:
            break
    channel.cancel()
    connection.close()


main()
