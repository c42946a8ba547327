"""Runs librdkafka's mock broker: ``python -m ciml.engines.mock_broker FILE`` writes its address to FILE atomically."""

from __future__ import annotations

import os
import signal
import sys


def main(published: str) -> None:
    """Run until a signal ends it."""
    from confluent_kafka import Producer

    # The brokers run in this client's threads; the client is otherwise unused.
    holder = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    brokers = holder.list_topics(timeout=10).brokers.values()
    staged = f"{published}.new"
    with open(staged, "w") as out:
        out.write(",".join(f"{broker.host}:{broker.port}" for broker in brokers))
    os.replace(staged, published)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main(sys.argv[1])
