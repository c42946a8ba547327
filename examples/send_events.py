"""Sends one CloudEvent for each run of a listing to Kafka, as a CI system would.

    ciml up kafka
    tar -xf examples/corpus/logs.tar
    python examples/send_events.py --runs 200

The logs are named as ``file://`` addresses below the current folder; `ciml ingest --allow-root logs` lets them in.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path

from confluent_kafka import Producer

from ciml import engines
from ciml.events.cloudevents import finished_event
from ciml.events.run_facts import facts_from_listing

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--listing", type=Path, default=HERE / "corpus" / "builds.jsonl")
    parser.add_argument("--logs", type=Path, default=Path(), help="folder in which its logs were unpacked")
    parser.add_argument("--runs", type=int, default=None, help="only the first so many")
    parser.add_argument("--topic", default="ci-events")
    parser.add_argument("--kafka", default=os.environ.get("CIML_KAFKA"), help="HOST:PORT, else the broker of ciml up")
    options = parser.parse_args()
    if not options.kafka:
        options.kafka = engines.read(engines.default_home())["kafka"].address

    producer = Producer({"bootstrap.servers": options.kafka, "enable.idempotence": True, "log_level": 3})
    failed: list[str] = []
    sent = 0
    with options.listing.open() as lines:
        for line in itertools.islice(lines, options.runs):
            build = json.loads(line)
            if not (options.logs / build["log_path"]).is_file():
                raise SystemExit(
                    f"{options.logs / build['log_path']} is missing: unpack the logs, or name them by --logs"
                )
            facts = facts_from_listing(build, source="zuul-example", logs=options.logs.resolve().as_uri())
            # What a gate says of itself; a listing's own word for trust is not an event's to use.
            facts = facts.replace(event="gate", pipeline="gate")
            value, headers = finished_event(facts, event_id=facts.build_uuid, time_us=facts.end_us)
            producer.produce(
                options.topic,
                value,
                key=facts.run_id,
                headers=headers,
                on_delivery=lambda error, _: failed.append(str(error)) if error else None,
            )
            producer.poll(0)
            sent += 1
    producer.flush(30)
    if failed:
        raise SystemExit(f"{len(failed)} of {sent} events were not acknowledged: {failed[0]}")
    print(f"{sent} events sent to {options.topic}")


if __name__ == "__main__":
    main()
