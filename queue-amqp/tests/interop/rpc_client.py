"""Asks by a queue, and prints the answers: `rpc_client.py URL QUEUE own|direct TEXT...`.

Answers come to an exclusive queue of its own, or directly.
"""

import sys

from pika import BasicProperties

from typed import connect


def main():
    url, queue, way, *questions = sys.argv[1:]
    connection = connect(url)
    channel = connection.channel()
    direct = way == "direct"
    if direct:
        reply_to = "amq.rabbitmq.reply-to"
    else:
        reply_to = channel.queue_declare("", exclusive=True).method.queue
    answers = {}

    def on_answer(_channel, _method, properties, body):
        answers[properties.correlation_id] = body.decode()

    channel.basic_consume(reply_to, on_answer, auto_ack=True)
    for question in questions:
        asked = BasicProperties(reply_to=reply_to, correlation_id="to " + question, content_type="text/plain")
        channel.basic_publish("", queue, question.encode(), asked)
    for _ in range(100):
        if len(answers) == len(questions):
            break
        connection.process_data_events(time_limit=0.2)
    else:
        sys.exit(f"only {len(answers)} answers in 20 s")
    for question in questions:
        print(answers["to " + question])
    connection.close()


main()
