"""The producer, a process of its own: sends a plan and keeps on disk what the broker acknowledged.

``python -m tests.faults.producer FOLDER BROKER TOPIC RATE`` reads ``FOLDER/plan.jsonl`` and appends to
``FOLDER/acks.jsonl`` a line ``[number in the plan, partition, offset, time]`` for each acknowledgement. It ends with 0
when everything was acknowledged, however long the broker was away.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.faults.plan import Send

Ack = tuple[int, int, int, float]


def write_plan(folder: Path, sends: Iterable[Send]) -> None:
    """Writes a plan for the process to read."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(send.to_json()) + "\n" for send in sends)
    (folder / "plan.jsonl").write_text(text)


class Acks:
    """What a producer's broker acknowledged, read as it grows."""

    def __init__(self, folder: Path, first: int) -> None:
        self._file, self._first, self._at = folder / "acks.jsonl", first, 0

    def new(self) -> list[Ack]:
        """What has come since the last call; numbers count from ``first``."""
        try:
            with self._file.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data.rfind(b"\n") + 1  # the last line may be half written
        self._at += whole
        found = [json.loads(line) for line in data[:whole].splitlines()]
        return [(number + self._first, partition, offset, at) for number, partition, offset, at in found]


def produce(folder: Path, broker: str, topic: str, rate: float) -> int:
    """Sends everything, at most ``rate`` messages a second (0: as fast as it goes). Returns how many are lost."""
    from confluent_kafka import Producer

    producer = Producer({
        "bootstrap.servers": broker, "enable.idempotence": True, "acks": "all", "linger.ms": 5, "log_level": 0,
        "message.timeout.ms": 600_000, "delivery.timeout.ms": 600_000, "queue.buffering.max.messages": 1_000_000,
        "reconnect.backoff.max.ms": 1000,
    })  # fmt: skip
    lost = 0
    with (folder / "acks.jsonl").open("a", buffering=1) as acks:

        def acknowledged(number: int) -> Any:
            def done(error: Any, message: Any) -> None:
                nonlocal lost
                if error is not None:
                    lost += 1
                    print(f"{number}: {error}", file=sys.stderr)
                else:
                    acks.write(json.dumps([number, message.partition(), message.offset(), time.time()]) + "\n")

            return done

        began = time.monotonic()
        with (folder / "plan.jsonl").open() as plan:
            for number, line in enumerate(plan):
                send = Send.from_json(json.loads(line))
                due = began + number / rate + send.pause_s if rate else 0.0
                producer.poll(0)
                while (wait_s := due - time.monotonic()) > 0:  # a poll ends with the first acknowledgement
                    producer.poll(wait_s)
                stamp = {} if send.timestamp_s is None else {"timestamp": int((time.time() + send.timestamp_s) * 1000)}
                producer.produce(
                    topic, send.value, send.key.encode(), partition=send.partition, headers=list(send.headers),
                    on_delivery=acknowledged(number), **stamp,
                )  # fmt: skip
        return lost + int(producer.flush(600))


if __name__ == "__main__":
    sys.exit(min(produce(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])), 1))
