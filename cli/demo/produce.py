"""The producer of the demo; its list has each acknowledged message with position and expected outcomes."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ciml.cli.demo.plan import Plan, Planned
from ciml.errors import CimlError, EngineError
from ciml.events.records import Kind


@dataclass(frozen=True, slots=True)
class Produced:
    """One (event, run) of an acknowledged message: its position and expected outcome (see `plan.Expected`)."""

    topic: str
    partition: int
    offset: int
    wave: int
    event_key: str
    run_id: str
    kind: Kind
    reason: str
    trusted: bool | None
    deferred: bool
    rows: int | None
    trick: str

    @property
    def key(self) -> tuple[str, int, int, str]:
        """Return the key of the (event, run) in the raw manifest."""
        return self.topic, self.partition, self.offset, self.run_id


class LogRoot:
    """The folder of the log server: the corpus' logs, some changed, some late."""

    def __init__(self, folder: Path, corpus: Path) -> None:
        self.folder = folder
        self.corpus = corpus

    def make(self, plan: Plan) -> None:
        """Write all logs but the late ones."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        for path in plan.logs:
            if path not in plan.late:
                self._put(plan, path)

    def release(self, plan: Plan, path: str) -> None:
        """Write a late log atomically."""
        self._put(plan, path)

    def _put(self, plan: Plan, path: str) -> None:
        sample, change = plan.logs[path]
        source = self.corpus / sample.log_path
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if change is not None:
            target.write_bytes(change(source.read_bytes()))
            return
        try:
            os.link(source, target)
        except OSError:  # another file system
            staged = target.with_name(".staged")
            shutil.copyfile(source, staged)
            os.replace(staged, target)

    def read_text(self, log_url: str, logs_url: str) -> bytes:
        """Return the text of a run's log as served, decompressed."""
        data = (self.folder / log_url.removeprefix(f"{logs_url}/")).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


class Sender:
    """The producer of the demo's CI."""

    def __init__(self, bootstrap: str, topic: str, timeout_s: float = 60.0) -> None:
        self.bootstrap = bootstrap
        self.topic = topic
        self.timeout_s = timeout_s
        self.produced: list[Produced] = []

    def send(self, messages: Sequence[Planned]) -> list[Produced]:
        """Send the messages and wait until all are acknowledged. Returns the additions to ``produced``.

        Raises:
          EngineError: the broker rejects a message, or does not acknowledge all in time.
        """
        from confluent_kafka import KafkaException, Producer

        where: dict[int, tuple[int, int]] = {}
        rejected: list[str] = []

        def delivered(number: int) -> Any:
            def report(error: Any, message: Any) -> None:
                if error is not None:
                    rejected.append(str(error))
                else:
                    where[number] = (message.partition(), message.offset())

            return report

        # Idempotent, so messages keep their order and only planned repeats occur.
        producer = Producer(
            {"bootstrap.servers": self.bootstrap, "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        )
        try:
            for number, message in enumerate(messages):
                producer.produce(
                    self.topic,
                    value=message.value,
                    key=message.key,
                    headers=list(message.headers),
                    on_delivery=delivered(number),
                )
                producer.poll(0)
            left = producer.flush(self.timeout_s)
        except KafkaException as error:
            raise EngineError(f"{self.bootstrap}: {error.args[0].str()}") from error
        if rejected or left or len(where) != len(messages):
            why = rejected[0] if rejected else f"{left} were not acknowledged within {self.timeout_s:g} s"
            raise EngineError(
                f"{self.bootstrap}: {len(messages) - len(where)} of {len(messages)} events were lost: {why}"
            )
        added = [
            Produced(self.topic, *where[number], message.wave, trick=message.trick, **asdict(expected))
            for number, message in enumerate(messages)
            for expected in message.expected
        ]
        self.produced += added
        return added


def dump(produced: Iterable[Produced]) -> bytes:
    """Return the list as JSON lines."""
    return "".join(json.dumps(asdict(line), sort_keys=True) + "\n" for line in produced).encode()


def load(data: bytes) -> list[Produced]:
    """Parse the output of `dump`.

    Raises:
      CimlError: for a line that is no such record.
    """
    try:
        return [Produced(**json.loads(line)) for line in data.splitlines()]
    except (TypeError, ValueError) as error:
        raise CimlError(f"invalid line in the producer's list: {error}") from None
