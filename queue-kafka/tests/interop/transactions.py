"""Sends in three transactions, of which the second is given up: `transactions.py URL TOPIC`."""

import sys

from kafka import KafkaProducer

from records import servers


def main():
    url, topic = sys.argv[1:]
    producer = KafkaProducer(bootstrap_servers=servers(url), transactional_id=topic)
    producer.init_transactions()
    for value, end in [
        (b"kept", producer.commit_transaction),
        (b"given up", producer.abort_transaction),
        (b"kept too", producer.commit_transaction),
    ]:
        producer.begin_transaction()
        producer.send(topic, value).get(20)
        end()
    producer.close()


main()
