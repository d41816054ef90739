"""The first program of pika: hello_rabbitmq.py URL plain|durable|passive send TEXT | receive.

`plain` is how the tutorials have it, `durable` what RabbitMQ takes from 4.3 on, `passive` takes the queue as it is.
"""

import sys

import pika

url, queue, action, *rest = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.queue_declare(queue="hello", durable=queue == "durable", passive=queue == "passive")

if action == "send":
    channel.basic_publish(exchange="", routing_key="hello", body=rest[0])
    print(f" [x] Sent '{rest[0]}'", flush=True)
    connection.close()
else:

    def callback(ch, method, properties, body):
        print(f" [x] Received {body.decode()}", flush=True)

    channel.basic_consume(queue="hello", on_message_callback=callback, auto_ack=True)
    print(" [*] Waiting for messages. To exit press CTRL+C", flush=True)
    channel.start_consuming()
