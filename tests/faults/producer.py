"""The producer, a process of its own: sends a plan and keeps on disk what the broker acknowledged."""

from __future__ import annotations

import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.plan import Send

#: Number in the plan, partition, offset, time.
Ack = tuple[int, int, int, float]


def produce(folder: Path, broker: str, topic: str, rate: float) -> None:
    """Send the pickled plan of a folder, at most ``rate`` messages a second (0: as fast as possible).

    ``acks.jsonl`` gets an `Ack` for each acknowledgement. Ends with 0 when everything was acknowledged, however long
    the broker was away.
    """
    from confluent_kafka import Producer

    producer = Producer({
        "bootstrap.servers": broker, "enable.idempotence": True, "acks": "all", "linger.ms": 5, "log_level": 0,
        "message.timeout.ms": 600_000, "delivery.timeout.ms": 600_000, "queue.buffering.max.messages": 1_000_000,
        "reconnect.backoff.max.ms": 1000,
    })  # fmt: skip
    sends: list[Send] = pickle.loads((folder / "plan.pickle").read_bytes())
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
        for number, send in enumerate(sends):
            producer.poll(0)
            while rate and (wait_s := began + number / rate - time.monotonic()) > 0:
                producer.poll(wait_s)  # a poll ends with the first acknowledgement
            stamp = {} if send.timestamp_s is None else {"timestamp": int((time.time() + send.timestamp_s) * 1000)}
            producer.produce(
                topic, send.value, send.key.encode(), partition=send.partition, headers=list(send.headers),
                on_delivery=acknowledged(number), **stamp,
            )  # fmt: skip
        sys.exit(bool(producer.flush(600) or lost))


class Acks:
    """What a producer's broker acknowledged, read as it grows. Numbers count from ``first``."""

    def __init__(self, folder: Path, first: int) -> None:
        self._file, self._first, self._at = folder / "acks.jsonl", first, 0

    def new(self) -> list[Ack]:
        """Return what was acknowledged since the last call."""
        if not self._file.exists():
            return []
        with self._file.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data.rfind(b"\n") + 1  # the last line may be half written
        self._at += whole
        acks = [json.loads(line) for line in data[:whole].splitlines()]
        return [(number + self._first, partition, offset, at) for number, partition, offset, at in acks]
